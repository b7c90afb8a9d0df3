"""The decision of a model: the minimum scores of its detections, chosen on labelled pictures.

A decision is part of the model's description, so that every command and every exported file uses the same
scores. `evaluation/thresholds.py` chooses them.

Letters: C classes of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

Rule = float | Literal["best_f1"]
Basis = Literal["own", "all classes", "most precise"]


@dataclass(frozen=True)
class Decision:
    """The thresholds of a model's classes, and how they were chosen.

    Attributes:
        thresholds: the minimum score of each of the C classes of the model, (C,), in [0, 1].
        bases: how each threshold was chosen, (C,). `own`: by the detections of the class. `all classes`: by
            the detections of all classes, because the pictures contain no object of the class, or none was
            found. `most precise`: for the highest precision of the class, because no threshold reaches the
            required precision.
        rule: `best_f1`, or the required precision, in (0, 1].
        split: the name of the split whose pictures were used.
        images: the number of these pictures.
    """

    thresholds: tuple[float, ...]
    bases: tuple[Basis, ...]
    rule: Rule
    split: str
    images: int

    @property
    def reason(self) -> str:
        """The rule and the split in words, for example "best F1 on val"."""
        return reason_in_words(self.rule, self.split)

    def by_class(self, names: Sequence[str | None]) -> dict[str, Any]:
        """Return the decision as JSON values, with thresholds and bases by class name.

        `names` holds the name of each class, or None for a class without a name, which is left out.
        """
        pairs = zip(names, self.thresholds, self.bases, strict=True)
        used = [(name, threshold, basis) for name, threshold, basis in pairs if name is not None]
        return {
            **self.to_dict(),
            "thresholds": {name: threshold for name, threshold, _ in used},
            "bases": {name: basis for name, _, basis in used},
        }

    def to_dict(self) -> dict[str, Any]:
        return {
            "rule": self.rule,
            "split": self.split,
            "images": self.images,
            "thresholds": list(self.thresholds),
            "bases": list(self.bases),
        }

    @classmethod
    def from_dict(cls, content: Any, num_classes: int) -> Decision:
        """Create a decision from the content of an untrusted file, a result of `to_dict`.

        Raises:
            ValueError: if the content is not a result of `to_dict` for a model with `num_classes` classes.
                The message names the field.
        """
        fields = {"rule", "split", "images", "thresholds", "bases"}
        if not isinstance(content, Mapping) or set(content) != fields:
            raise ValueError(f"decision must have the fields {', '.join(sorted(fields))}")
        thresholds, bases = content["thresholds"], content["bases"]
        for name, values in (("thresholds", thresholds), ("bases", bases)):
            if not isinstance(values, list) or len(values) != num_classes:
                raise ValueError(f"decision.{name} must list one entry for each of {num_classes} classes")
        for number, threshold in enumerate(thresholds):
            if not _is_share(threshold):
                raise ValueError(
                    f"decision.thresholds[{number}] must be a number between 0 and 1, not {threshold!r:.40}"
                )
        for number, basis in enumerate(bases):
            if basis not in get_args(Basis):
                raise ValueError(
                    f"decision.bases[{number}] must be one of {', '.join(get_args(Basis))}, not {basis!r:.40}"
                )
        rule, split, images = content["rule"], content["split"], content["images"]
        if rule != "best_f1" and not (_is_share(rule) and rule > 0):
            raise ValueError(f"decision.rule must be best_f1 or a number in (0, 1], not {rule!r:.40}")
        if not isinstance(split, str):
            raise ValueError(f"decision.split must be a string, not {split!r:.40}")
        if type(images) is not int or images < 1:
            raise ValueError(f"decision.images must be a positive integer, not {images!r:.40}")
        return cls(tuple(map(float, thresholds)), tuple(bases), rule, split, images)


def reason_in_words(rule: Rule, split: str) -> str:
    """Return the rule and the split in words, for example "best F1 on val"."""
    goal = "best F1" if rule == "best_f1" else f"a precision of at least {rule:g}"
    return f"{goal} on {split}"


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1

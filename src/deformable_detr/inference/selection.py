"""The user's selection of detections by class and score, with a threshold for each class."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..checkpoint import Decision
from ..detections import ClassTable, Detections, require_finite
from ..errors import UserError
from ..words import listed

MAX_NAMES = 20  # maximum number of class names in an error message
MAX_THRESHOLDS = 8  # maximum number of thresholds, or of class names with a threshold, in a line
UNREACHABLE = np.inf  # the threshold of classes that are left out
USUAL_THRESHOLD = 0.5  # the threshold for models that contain none
REQUESTED = "as requested"


@dataclass(frozen=True)
class Selection:
    """The minimum score of each class.

    Attributes:
        thresholds: the minimum score of each class, (number of classes,) float32; `UNREACHABLE` for classes
            that are left out.
        names: the name of each class; None for a logit that no class uses.
        reason: the origin of the thresholds, in words.
    """

    thresholds: np.ndarray
    names: tuple[str | None, ...]
    reason: str

    @classmethod
    def of(
        cls,
        table: ClassTable,
        threshold: float | None = None,
        classes: Sequence[str] | None = None,
        class_thresholds: Mapping[str, float] | None = None,
        decision: Decision | None = None,
    ) -> Selection:
        """Return the selection for the classes in `table`.

        Args:
            threshold: the minimum score of every class that `class_thresholds` does not name; None means the
                threshold of `decision` or, without one, USUAL_THRESHOLD.
            classes: names of the selected classes; None means all. A name with commas may be given in parts,
                as a command line splits it: ["bus", "coach"] means the class "bus, coach" if there is one and
                no class "bus".
            class_thresholds: the minimum score by class name.
            decision: the model's own thresholds; None if it has none.

        Raises:
            UserError: if `table` lacks one of the named classes (the message suggests similar names), if a
                score is outside [0, 1], if `classes` is empty or a string, or if `class_thresholds`
                names a class that is not selected.
        """
        common, reason = _common(threshold, decision, len(table))
        if isinstance(classes, str):
            raise UserError(f'classes must be a list of names, classes=["{classes}"], not {classes!r}.')
        if classes is not None:
            classes = _with_commas(classes, [name for name in table.names if name is not None])
        own = dict(class_thresholds or {})
        _check_names([*([] if classes is None else classes), *own], table)
        for name, score in own.items():
            _check_score(f"the threshold of {name}", score)
        if classes is not None:
            if not classes:
                raise UserError("classes names no class: leave it out to see all of them.")
            unseen = sorted(own.keys() - set(classes))
            if unseen:
                raise UserError(
                    f"there is a threshold for {unseen[0]}, which is not among the chosen classes: add it "
                    "to classes, or drop its threshold."
                )
        selected = set(table.names if classes is None else classes)
        minima = [
            own.get(str(name), score) if name in selected else UNREACHABLE
            for name, score in zip(table.names, common, strict=True)
        ]
        if own and reason != REQUESTED:
            reason = f"{reason}; as requested for {listed(list(own), MAX_THRESHOLDS)}"
        return cls(np.array(minima, dtype=np.float32), table.names, reason)  # float32, like scores

    @property
    def leaves_classes_out(self) -> bool:
        return bool((self.thresholds == UNREACHABLE).any())

    def __call__(self, detections: Detections) -> Detections:
        """Return those of `detections` that are selected, with boxes clipped to their picture.

        The detections of `predict`, `serve` and `explain` pass through this method. `evaluate` and the report
        use unclipped boxes, as the paper's authors do.

        Raises:
            UserError: if a score or a box is not finite.
        """
        return detections.take(np.flatnonzero(self.mask(detections))).clipped()

    def mask(self, detections: Detections) -> np.ndarray:
        """Return a mask of the N detections, (N,) bool, which is True for the selected ones.

        Raises:
            UserError: if a score or a box is not finite.
        """
        require_finite(detections.scores, detections.boxes_xyxy)
        mask: np.ndarray = detections.scores >= self.thresholds[detections.labels]
        return mask

    def loosened(self, factor: float) -> Selection:
        """Return a selection of the same classes with their minimum scores multiplied by `factor`."""
        return replace(self, thresholds=self.thresholds * factor)

    @property
    def by_class(self) -> dict[str, float]:
        """The minimum score of each selected class, by name.

        Scores are rounded to 6 decimal places, so that a threshold like 0.3 does not become 0.300000012
        (float32).
        """
        pairs = zip(self.names, self.thresholds.tolist(), strict=True)
        return {name: round(score, 6) for name, score in pairs if name is not None and score != UNREACHABLE}

    @property
    def common(self) -> float | None:
        """The minimum score that all selected classes share; None if the scores differ or there are none."""
        scores = set(self.by_class.values())
        return scores.pop() if len(scores) == 1 else None

    def scores_in_words(self) -> str:
        """Return the minimum scores in words: '0.5' if they are equal, otherwise 'car 0.32, bus 0.41'.

        At most 8 classes are listed, in the order of the class table, and the others are counted.
        """
        if self.common is not None:
            return f"{self.common:g}"
        return listed([f"{name} {score:g}" for name, score in self.by_class.items()], MAX_THRESHOLDS)

    def in_words(self) -> str:
        """Return the minimum scores and their origin in words: 'car 0.32, bus 0.41 (best F1 on val)'."""
        return f"{self.scores_in_words()} ({self.reason})"


def _common(
    threshold: float | None, decision: Decision | None, num_classes: int
) -> tuple[Sequence[float], str]:
    """Return each class's minimum score before `class_thresholds` apply, and the scores' origin in words.

    Raises:
        UserError: if `threshold` is outside [0, 1].
    """
    if threshold is not None:
        _check_score("threshold", threshold)
        return [threshold] * num_classes, REQUESTED
    if decision is not None:
        return decision.thresholds, decision.reason
    return [USUAL_THRESHOLD] * num_classes, "the usual one; the model has no thresholds of its own"


def _with_commas(parts: Sequence[str], known: Sequence[str]) -> list[str]:
    """Return the class names in `parts`; adjacent parts that form a `known` name with commas are joined.

    A part that is itself a known name is not joined to the parts after it. The longest possible name is
    formed. Other parts are returned as they are, even if they are not known.
    """
    by_parts = {tuple(part.strip() for part in name.split(",") if part.strip()): name for name in known}
    longest = max(map(len, by_parts), default=1)
    names: list[str] = []
    at = 0
    while at < len(parts):
        name, length = parts[at], 1
        if name not in known:
            lengths = range(min(longest, len(parts) - at), 0, -1)
            length = next((n for n in lengths if tuple(parts[at : at + n]) in by_parts), 1)
            name = by_parts.get(tuple(parts[at : at + length]), name)
        names.append(name)
        at += length
    return names


def _check_score(name: str, score: float) -> None:
    if not 0 <= score <= 1:
        raise UserError(f"{name} must be between 0 and 1, not {score}.")


def _check_names(names: Iterable[str], table: ClassTable) -> None:
    known = [name for name in table.names if name is not None]
    for name in names:
        if name in known:
            continue
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        listed = ", ".join(known[:MAX_NAMES])
        if len(known) > MAX_NAMES:
            listed += f" and {len(known) - MAX_NAMES} more"
        hint = f"did you mean {' or '.join(close)}? It" if close else "it"
        raise UserError(f"the model has no class {name}: {hint} has {listed}.")

"""The choice of score thresholds on a labelled split, for the model's decision and for the report.

A detection is right if it finds an object of its class with an IoU of at least 0.5 (matching.py). A
threshold that is chosen on a split makes the numbers of that split look a little better than they are.

Letters: D detections, S thresholds (0.01, 0.02, …, 1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..checkpoint import Decision
from ..checkpoint.decision import Basis, Rule
from ..data.records import Split
from ..detections import ClassTable
from ..errors import UserError
from .matching import LOOSE, Matches, Objects, ScoredBoxes, match

THRESHOLDS = np.arange(1, 101) / 100
ROUNDING = 1e-9  # so that 9 right detections of 10 reach a precision of 0.9


@dataclass(frozen=True)
class ThresholdCurve:
    """The quality of the detections that reach each of the S = 100 thresholds 0.01, 0.02, …, 1.

    Attributes:
        precision: (S,), the share of right ones among those that are right or wrong; nan if there are none.
        recall: (S,), the share of the objects that these detections find; 0 if there are no objects.
        f1: (S,), the harmonic mean of precision and recall; 0 if no detection is right.
        num_detections: (S,), the number of these detections that are right or wrong.
        num_objects: the number of objects that should be found.
    """

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    num_detections: np.ndarray
    num_objects: int

    @property
    def best(self) -> int | None:
        """The index of the threshold with the best F1; None if no detection is right.

        If several thresholds have the best F1, this is the highest of them, moved to the middle of the
        thresholds that the same detections reach.
        """
        if not self.num_objects or self.f1.max() <= 0:
            return None
        return self._middle(int(len(self.f1) - 1 - self.f1[::-1].argmax()))

    @property
    def best_threshold(self) -> float | None:
        return None if self.best is None else float(THRESHOLDS[self.best])

    @property
    def most_precise(self) -> int | None:
        """The index of the threshold with the highest precision; None if no detection is right.

        If several thresholds have this precision, this is the lowest of them, moved as for `best`.
        """
        if not self.num_objects or self.f1.max() <= 0:
            return None
        return self._middle(int(np.nan_to_num(self.precision, nan=-1.0).argmax()))

    def reaching(self, precision: float) -> int | None:
        """Return the index of the lowest threshold with at least this precision, moved as for `best`.

        Of the thresholds with this precision, it has the highest recall. Return None if there is no such
        threshold, or if there are no objects.
        """
        enough = np.flatnonzero(np.nan_to_num(self.precision, nan=-1.0) >= precision - ROUNDING)
        return self._middle(int(enough[0])) if len(enough) and self.num_objects else None

    def _middle(self, index: int) -> int:
        """Return the index of the middle of the thresholds that are equivalent to the threshold at `index`.

        Thresholds are equivalent if the same detections reach them. The middle is the safest choice, because
        right and wrong detections in other pictures may score a little differently.
        """
        same = np.flatnonzero(self.num_detections == self.num_detections[index])
        return int((same[0] + same[-1]) // 2)


def threshold_curve(
    scores: np.ndarray, right: np.ndarray, wrong: np.ndarray, num_objects: int
) -> ThresholdCurve:
    """Compute the curve of D detections from their `scores` and the masks `right` and `wrong`, (D,) each.

    The order does not matter. Detections that are neither right nor wrong are left out. `num_objects` is the
    number of objects that should be found.
    """
    hits, misses = (_at_least(scores[kind]) for kind in (right, wrong))
    total = hits + misses
    precision = np.divide(hits, total, out=np.full(len(THRESHOLDS), np.nan), where=total > 0)
    recall = hits / max(num_objects, 1)
    f1 = 2 * hits / np.maximum(total + num_objects, 1)
    return ThresholdCurve(precision, recall, f1, total, num_objects)


def curve_of(
    detections: ScoredBoxes, objects: Objects, matches: Matches, label: int | None = None
) -> ThresholdCurve:
    """Return the curve of the class with the index `label` in the data, or of all classes if it is None.

    Crowds, and the detections that they excuse, are left out.
    """
    counted, detected = ~objects.crowd, np.ones(len(detections), dtype=bool)
    if label is not None:
        counted, detected = counted & (objects.labels == label), detections.labels == label
    return threshold_curve(
        detections.scores[detected], matches.right[detected], matches.wrong[detected], int(counted.sum())
    )


def _at_least(scores: np.ndarray) -> np.ndarray:
    """Return the number of scores that reach each threshold, (S,).

    Scores and thresholds are compared in single precision, so that a score of 0.3 reaches 0.3.
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float32))
    return len(ordered) - np.searchsorted(ordered, THRESHOLDS.astype(np.float32), side="left")


def choose_thresholds(
    split: Split,
    rows: Sequence[Mapping[str, Any]],
    classes: ClassTable,
    category_ids: Mapping[int, int],
    rule: Rule = "best_f1",
) -> Decision | None:
    """Choose a threshold for each class of a model by its detections in a labelled split.

    A class without a right detection in the split gets the threshold of all classes together. If no threshold
    reaches the minimum precision of `rule`, the most precise one is chosen.

    Args:
        split: the labelled split.
        rows: the result of `collect_detections` on this split with a threshold of 0.
        classes: the classes of the model.
        category_ids: the split's category ids by the model's class indices (`match_classes`).
        rule: `best_f1`, or a minimum precision, at which the threshold with the highest recall is chosen.

    Returns:
        The decision; None if no detection in the split is right.
    """
    detections, objects = ScoredBoxes.from_rows(rows, split), Objects.from_split(split)
    matches = match(detections, objects, LOOSE)
    together = curve_of(detections, objects, matches)
    if together.best is None:
        return None
    common, _ = _chosen(together, rule)
    label_of = {category_id: label for label, category_id in enumerate(split.classes.category_ids)}
    thresholds: list[float] = []
    bases: list[Basis] = []
    for index in range(len(classes)):
        basis: Basis = "all classes"
        threshold = common
        if index in category_ids:
            curve = curve_of(detections, objects, matches, label_of[category_ids[index]])
            if curve.best is not None:
                threshold, basis = _chosen(curve, rule)
        thresholds.append(threshold)
        bases.append(basis)
    return Decision(tuple(thresholds), tuple(bases), rule, split.name, len(split))


def _chosen(curve: ThresholdCurve, rule: Rule) -> tuple[float, Basis]:
    """Return the threshold that `rule` chooses, and its basis; some detection of the curve must be right."""
    index = curve.best if isinstance(rule, str) else curve.reaching(rule)
    basis: Basis = "own"
    if index is None:
        index, basis = curve.most_precise, "most precise"
    assert index is not None
    return float(THRESHOLDS[index]), basis


def check_rule(rule: Rule) -> None:
    """Raise a `UserError` unless `rule` is `best_f1` or a precision in (0, 1]."""
    if rule != "best_f1" and (isinstance(rule, str) or not 0 < rule <= 1):
        raise UserError(f"the rule for thresholds must be best_f1 or a precision in (0, 1], not {rule}.")

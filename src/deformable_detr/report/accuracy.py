"""A detector's accuracy on a split: the evaluator's AP, and the curves of measures.py.

Letters: C classes of the data, D detections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from ..checkpoint import Decision
from ..data.records import Split
from ..evaluation import ground_truth_of
from ..evaluation.areas import count_sizes
from ..evaluation.average_precision import coco_numbers
from ..evaluation.limits import usual_limit
from ..evaluation.matching import (
    LOOSE,
    TIGHT,
    Matches,
    Objects,
    ScoredBoxes,
    confusion,
    in_same_image,
    match,
    overlaps,
)
from ..evaluation.thresholds import ThresholdCurve, curve_of
from ..inference.selection import USUAL_THRESHOLD
from .measures import Calibration, calibration, class_curves

NEARBY = 0.1  # the IoU with an object of its class from which a wrong box is badly placed, not background


class Mistake(Enum):
    """The kinds of false positives."""

    DUPLICATE = "found twice"
    WRONG_CLASS = "wrong class"
    BADLY_PLACED = "badly placed"
    BACKGROUND = "nothing there"


MEANINGS = {
    Mistake.DUPLICATE: "its object was already found by a detection with a higher score",
    Mistake.WRONG_CLASS: f"the box fits an object of another class (IoU of at least {LOOSE})",
    Mistake.BADLY_PLACED: f"an object of its class is near, but the IoU is under {LOOSE}",
    Mistake.BACKGROUND: "no annotated object of its class is near: a mistake, or a missing annotation",
}


@dataclass(frozen=True)
class ClassRow:
    """The measurements for one class.

    Attributes:
        name: the name of the class.
        label: the class's index in the data.
        objects: the number of objects of the class in the split, without crowds.
        images: the number of images with at least one of these objects.
        ap: the values of the evaluator's CLASS_METRICS by name; None if `objects` is 0.
        curve, tight_curve: the precision at each of COCO's 101 recall levels, (101,), at an IoU of 0.5 and of
            0.75; nan if `objects` is 0.
        thresholds: the threshold curve for this class alone.
        known: True if the model has this class.
    """

    name: str
    label: int
    objects: int
    images: int
    ap: Mapping[str, float] | None
    curve: np.ndarray
    tight_curve: np.ndarray
    thresholds: ThresholdCurve
    known: bool

    @property
    def mean_ap(self) -> float:
        return -1.0 if self.ap is None else self.ap["AP"]

    @property
    def ap50(self) -> float:
        return -1.0 if self.ap is None else self.ap["AP50"]


@dataclass(frozen=True)
class Cut:
    """The minimum scores at which detections count in the report's precision and recall.

    Attributes:
        scores: the minimum score of each of the C classes of the data, (C,).
        reason: how the scores were chosen, in words.
        decision: the model's own thresholds; None if `scores` is one threshold, chosen on the measured split.
    """

    scores: np.ndarray
    reason: str
    decision: Decision | None = None

    @classmethod
    def uniform(cls, threshold: float, num_classes: int, reason: str) -> Cut:
        return cls(np.full(num_classes, threshold), reason)

    def mask(self, detections: ScoredBoxes) -> np.ndarray:
        """Return a mask, (D,) bool, of those of the D detections that reach the minimum score of their class.

        Scores are compared in single precision, as `predict` does.
        """
        above: np.ndarray = (
            detections.scores.astype(np.float32) >= self.scores.astype(np.float32)[detections.labels]
        )
        return above

    def in_words(self) -> str:
        """Return the minimum score as '0.32', or as '0.28 to 0.45' if it differs between classes."""
        low, high = float(self.scores.min()), float(self.scores.max())
        return f"{low:.2f}" if low == high else f"{low:.2f} to {high:.2f}"


@dataclass(frozen=True)
class Accuracy:
    """The measurements on one split.

    Attributes:
        summary: COCO's twelve numbers, by name.
        classes: the measurements for each class of the data that has a name, in the order of the class
            indices.
        objects: all objects of the split, including crowd regions.
        detections: all detections, including those below the minimum scores.
        loose, tight: the matches at an IoU of 0.5 and of 0.75.
        thresholds: the threshold curve over all classes.
        cut: the minimum scores that the report uses.
        calibration: the calibration of the scores; None if there are no detections or all scores are below
            the minimum for a calibration.
        confusion: (C + 1, C + 1) counts for the C classes of the data, with the objects' classes as rows and
            the classes of the detections that reach `cut` as columns. The last column counts the objects that
            no detection took, and the last row counts the detections that took no object.
    """

    split: Split
    summary: Mapping[str, float]
    classes: tuple[ClassRow, ...]
    objects: Objects
    detections: ScoredBoxes
    loose: Matches
    tight: Matches
    thresholds: ThresholdCurve
    cut: Cut
    calibration: Calibration | None
    confusion: np.ndarray

    @property
    def num_objects(self) -> int:
        return self.thresholds.num_objects

    @property
    def size_counts(self) -> dict[str, int]:
        """The number of objects of each of COCO's sizes, without crowds."""
        return count_sizes(self.objects.areas[~self.objects.crowd])

    @property
    def classes_to_find(self) -> list[ClassRow]:
        """The classes that have objects in this split."""
        return [row for row in self.classes if row.ap is not None]

    @property
    def mean_curves(self) -> tuple[np.ndarray, np.ndarray]:
        """The precision-recall curves at IoUs of 0.5 and 0.75, averaged over `classes_to_find`, (101,) each.

        Their means are AP50 and AP75. At least one class must have objects.
        """
        rows = self.classes_to_find
        return (
            np.mean([row.curve for row in rows], axis=0),
            np.mean([row.tight_curve for row in rows], axis=0),
        )

    @property
    def false_positives(self) -> np.ndarray:
        """The indices of the wrong detections that reach the minimum scores of `cut`, best score first."""
        return np.flatnonzero(self.loose.wrong & self.cut.mask(self.detections))

    @property
    def precision(self) -> float:
        """The share of detections that are right (at an IoU of 0.5) among those that reach `cut`.

        Detections that are neither right nor wrong are left out. The share is nan if no others remain.
        """
        above = self.cut.mask(self.detections)
        right, wrong = (int((above & kind).sum()) for kind in (self.loose.right, self.loose.wrong))
        return right / (right + wrong) if right + wrong else float("nan")

    @property
    def recall(self) -> float:
        """The share of the objects that detections with the minimum scores of `cut` find at an IoU of 0.5.

        The share is 0 if there are no objects.
        """
        right = int((self.cut.mask(self.detections) & self.loose.right).sum())
        return right / max(self.num_objects, 1)


def measure(
    split: Split,
    rows: Sequence[Mapping[str, Any]],
    unknown: Sequence[str] = (),
    cut: Cut | None = None,
) -> Accuracy:
    """Measure detections against the objects of a split.

    Args:
        split: the split, with at least one image.
        rows: COCO results rows, as `evaluation.collect_detections` returns them.
        unknown: names of the classes of the data that the model does not have.
        cut: the minimum scores to use. None means the threshold with the best F1 over all classes, or
            USUAL_THRESHOLD if no detection is right.

    Raises:
        KeyError: if a row names an image or category that the split lacks.
        UserError: if a row's box or score is not finite, or its box has a negative width or height.
    """
    detections, objects = ScoredBoxes.from_rows(rows, split), Objects.from_split(split)
    loose, tight = match(detections, objects, LOOSE), match(detections, objects, TIGHT)
    C = len(split.classes)
    numbers = coco_numbers(ground_truth_of(split), rows, limit=usual_limit(split))
    curves = (class_curves(detections, objects, loose, C), class_curves(detections, objects, tight, C))
    counted = ~objects.crowd
    classes = []
    for label, category_id in enumerate(split.classes.category_ids):
        name = split.classes.names[label]
        annotated = counted & (objects.labels == label)
        count = int(annotated.sum())
        if name is None:
            continue
        classes.append(
            ClassRow(
                name=name,
                label=label,
                objects=count,
                images=len(np.unique(objects.images[annotated])),
                ap=numbers.classes.get(category_id),
                curve=curves[0][label],
                tight_curve=curves[1][label],
                thresholds=curve_of(detections, objects, loose, label),
                known=name not in unknown,
            )
        )
    thresholds = curve_of(detections, objects, loose)
    if cut is None:
        best = thresholds.best_threshold
        cut = Cut.uniform(USUAL_THRESHOLD if best is None else best, C, f"best F1 on {split.name}")
    return Accuracy(
        split=split,
        summary=numbers.summary,
        classes=tuple(classes),
        objects=objects,
        detections=detections,
        loose=loose,
        tight=tight,
        thresholds=thresholds,
        cut=cut,
        calibration=calibration(detections.scores, loose.right, loose.wrong),
        confusion=confusion(detections, objects, loose, cut.mask(detections), C),
    )


def mistakes(accuracy: Accuracy) -> dict[int, Mistake]:
    """Return the kind of mistake of each detection in `accuracy.false_positives`, by its index.

    The items are in the order of `accuracy.false_positives`, best score first.
    """
    detections, objects = accuracy.detections, accuracy.objects
    wrong = accuracy.false_positives
    kinds = dict.fromkeys(wrong.tolist(), Mistake.BACKGROUND)
    is_wrong = np.zeros(len(detections), dtype=bool)
    is_wrong[wrong] = True
    for _, rows, columns in in_same_image(detections, objects, same_class=False):
        rows, columns = rows[is_wrong[rows]], columns[~objects.crowd[columns]]
        if not len(rows) or not len(columns):
            continue
        overlap = overlaps(detections.boxes_xyxy[rows], objects.boxes_xyxy[columns])
        for row, ious in zip(rows.tolist(), overlap, strict=True):
            same = objects.labels[columns] == detections.labels[row]
            own, other = float(ious[same].max(initial=0)), float(ious[~same].max(initial=0))
            if own >= LOOSE:
                kinds[row] = Mistake.DUPLICATE
            elif other >= LOOSE:
                kinds[row] = Mistake.WRONG_CLASS
            elif own >= NEARBY:
                kinds[row] = Mistake.BADLY_PLACED
    return kinds

"""A detector's accuracy on a split: the evaluator's AP, and the curves of measures.py.

Letters: C classes of the data, R recall levels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from ..data.records import Split
from ..evaluation import ground_truth_of
from ..evaluation.areas import count_sizes
from ..evaluation.average_precision import coco_numbers
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
from .measures import (
    Calibration,
    ThresholdCurve,
    calibration,
    class_curves,
    threshold_curve,
)

NEARBY = 0.1  # a wrong box with at least this IoU is badly placed; below, it counts as background
FALLBACK_THRESHOLD = 0.5  # predict's default, used if no threshold is better than another


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
        ap: the values of the evaluator's CLASS_METRICS; None if the split has no object of this class.
        curve: the precision at an IoU of 0.5, (R,); `tight_curve` is the precision at an IoU of 0.75.
        thresholds: the threshold curve for this class alone.
        known: True if the model has this class.
    """

    name: str
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
class Accuracy:
    """The measurements on one split.

    Attributes:
        summary: COCO's twelve numbers.
        loose, tight: the matches at an IoU of 0.5 and of 0.75.
        thresholds: the threshold curve over all classes.
        threshold: the score threshold that the report recommends and uses.
        confusion: (C + 1, C + 1) counts; see `evaluation.matching.confusion`.
    """

    split: Split
    summary: Mapping[str, float]
    classes: tuple[ClassRow, ...]
    objects: Objects
    detections: ScoredBoxes
    loose: Matches
    tight: Matches
    thresholds: ThresholdCurve
    threshold: float
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
        """The class means of the curves at IoUs of 0.5 and 0.75, (R,) each; their areas are AP50 and AP75."""
        rows = self.classes_to_find
        return (
            np.mean([row.curve for row in rows], axis=0),
            np.mean([row.tight_curve for row in rows], axis=0),
        )

    @property
    def false_positives(self) -> np.ndarray:
        """The indices of the wrong detections above the threshold, in order of decreasing score."""
        return np.flatnonzero(self.loose.wrong & (self.detections.scores >= self.threshold))


def measure(split: Split, rows: Sequence[Mapping[str, Any]], unknown: Sequence[str] = ()) -> Accuracy:
    """Measure detections against the objects of a split.

    Args:
        rows: COCO results rows, as `evaluation.collect_detections` returns them.
        unknown: names of the classes that the model does not have.
    """
    detections, objects = ScoredBoxes.from_rows(rows, split), Objects.from_split(split)
    loose, tight = match(detections, objects, LOOSE), match(detections, objects, TIGHT)
    C = len(split.classes)
    numbers = coco_numbers(ground_truth_of(split), rows)
    curves = (class_curves(detections, objects, loose, C), class_curves(detections, objects, tight, C))
    counted = ~objects.crowd
    classes = []
    for label, category_id in enumerate(split.classes.category_ids):
        name = split.classes.names[label]
        detected, annotated = detections.labels == label, counted & (objects.labels == label)
        count = int(annotated.sum())
        if name is None:
            continue
        classes.append(
            ClassRow(
                name=name,
                objects=count,
                images=len(np.unique(objects.images[annotated])),
                ap=numbers.classes.get(category_id),
                curve=curves[0][label],
                tight_curve=curves[1][label],
                thresholds=threshold_curve(
                    detections.scores[detected], loose.right[detected], loose.wrong[detected], count
                ),
                known=name not in unknown,
            )
        )
    thresholds = threshold_curve(detections.scores, loose.right, loose.wrong, int(counted.sum()))
    best = thresholds.best_threshold
    threshold = FALLBACK_THRESHOLD if best is None else best
    return Accuracy(
        split=split,
        summary=numbers.summary,
        classes=tuple(classes),
        objects=objects,
        detections=detections,
        loose=loose,
        tight=tight,
        thresholds=thresholds,
        threshold=threshold,
        calibration=calibration(detections.scores, loose.right, loose.wrong),
        confusion=confusion(detections, objects, loose, threshold, C),
    )


def mistakes(accuracy: Accuracy) -> dict[int, Mistake]:
    """Map the index of each of `accuracy.false_positives` to its kind of mistake, in the same order."""
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


def count_mistakes(kinds: Mapping[int, Mistake]) -> Counter[Mistake]:
    return Counter(kinds.values())

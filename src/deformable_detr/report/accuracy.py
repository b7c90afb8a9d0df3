"""What a detector is worth on a split, in numbers: AP as the evaluator has it, and the curves of measures.py.

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

NEARBY = 0.1  # IoU from which a wrong box is a badly placed one, not one on the background
FALLBACK_THRESHOLD = 0.5  # of predict; used if no threshold is better than another


class Mistake(Enum):
    """What is wrong with a detection that found no object."""

    DUPLICATE = "found twice"
    WRONG_CLASS = "wrong class"
    BADLY_PLACED = "badly placed"
    BACKGROUND = "nothing there"


MEANINGS = {
    Mistake.DUPLICATE: "its object was already found by a detection with a higher score",
    Mistake.WRONG_CLASS: f"the box fits an object of another class (IoU of {LOOSE} at least)",
    Mistake.BADLY_PLACED: f"an object of its class is near, but the IoU is under {LOOSE}",
    Mistake.BACKGROUND: "no annotated object of its class is near: a mistake, or a missing annotation",
}


@dataclass(frozen=True)
class ClassRow:
    """One class in numbers. `ap`: CLASS_METRICS of the evaluator, None if the split has no object of it.
    `curve`: (R,) precision at IoU 0.5. `thresholds`: of this class alone. `known`: to the model."""

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
    """`summary`: COCO's twelve numbers. `loose`, `tight`: matches at IoU 0.5 and 0.75. `thresholds`: over all
    classes; `threshold`: the one that the report recommends and uses. `confusion`: (C + 1, C + 1)."""

    split: Split
    summary: Mapping[str, float]
    classes: tuple[ClassRow, ...]
    objects: Objects
    found: ScoredBoxes
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
        """Objects of each of COCO's sizes."""
        return count_sizes(self.objects.areas[~self.objects.crowd])

    @property
    def classes_to_find(self) -> list[ClassRow]:
        """Classes with something to find."""
        return [row for row in self.classes if row.ap is not None]

    @property
    def mean_curves(self) -> tuple[np.ndarray, np.ndarray]:
        """(R,) at IoU 0.5 and 0.75, means over classes: their areas are AP50 and AP75."""
        rows = self.classes_to_find
        return (
            np.mean([row.curve for row in rows], axis=0),
            np.mean([row.tight_curve for row in rows], axis=0),
        )

    @property
    def false_positives(self) -> np.ndarray:
        """Indices of `found`: wrong ones above the threshold, best score first."""
        return np.flatnonzero(self.loose.wrong & (self.found.scores >= self.threshold))


def measure(split: Split, rows: Sequence[Mapping[str, Any]], unknown: Sequence[str] = ()) -> Accuracy:
    """rows: COCO results of `evaluation.collect_detections`. unknown: classes that the model has not."""
    found, objects = ScoredBoxes.of(rows, split), Objects.of(split)
    loose, tight = match(found, objects, LOOSE), match(found, objects, TIGHT)
    C = len(split.classes)
    numbers = coco_numbers(ground_truth_of(split), rows)
    curves = (class_curves(found, objects, loose, C), class_curves(found, objects, tight, C))
    counted = ~objects.crowd
    classes = []
    for label, category_id in enumerate(split.classes.category_ids):
        name = split.classes.names[label]
        own, its = found.labels == label, counted & (objects.labels == label)
        count = int(its.sum())
        if name is None:
            continue
        classes.append(
            ClassRow(
                name=name,
                objects=count,
                images=len(np.unique(objects.images[its])),
                ap=numbers.classes.get(category_id),
                curve=curves[0][label],
                tight_curve=curves[1][label],
                thresholds=threshold_curve(found.scores[own], loose.right[own], loose.wrong[own], count),
                known=name not in unknown,
            )
        )
    thresholds = threshold_curve(found.scores, loose.right, loose.wrong, int(counted.sum()))
    best = thresholds.best_threshold
    threshold = FALLBACK_THRESHOLD if best is None else best
    return Accuracy(
        split=split,
        summary=numbers.summary,
        classes=tuple(classes),
        objects=objects,
        found=found,
        loose=loose,
        tight=tight,
        thresholds=thresholds,
        threshold=threshold,
        calibration=calibration(found.scores, loose.right, loose.wrong),
        confusion=confusion(found, objects, loose, threshold, C),
    )


def mistakes(accuracy: Accuracy) -> dict[int, Mistake]:
    """What is wrong with each of `accuracy.false_positives`, in their order."""
    found, objects = accuracy.found, accuracy.objects
    wrong = accuracy.false_positives
    kinds = dict.fromkeys(wrong.tolist(), Mistake.BACKGROUND)
    is_wrong = np.zeros(len(found), dtype=bool)
    is_wrong[wrong] = True
    for _, rows, columns in in_same_image(found, objects, same_class=False):
        rows, columns = rows[is_wrong[rows]], columns[~objects.crowd[columns]]
        if not len(rows) or not len(columns):
            continue
        overlap = overlaps(found.boxes_xyxy[rows], objects.boxes_xyxy[columns])
        for row, each in zip(rows.tolist(), overlap, strict=True):
            same = objects.labels[columns] == found.labels[row]
            own, other = float(each[same].max(initial=0)), float(each[~same].max(initial=0))
            if own >= LOOSE:
                kinds[row] = Mistake.DUPLICATE
            elif other >= LOOSE:
                kinds[row] = Mistake.WRONG_CLASS
            elif own >= NEARBY:
                kinds[row] = Mistake.BADLY_PLACED
    return kinds


def count_mistakes(kinds: Mapping[int, Mistake]) -> Counter[Mistake]:
    return Counter(kinds.values())

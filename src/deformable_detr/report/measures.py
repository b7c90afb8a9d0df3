"""The curves of the report, computed from each detection's score and whether it is right (matching.py).

The curves over score thresholds are in `evaluation/thresholds.py`.

Letters: D detections, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..evaluation.matching import Matches, Objects, ScoredBoxes

RECALLS = np.linspace(0.0, 1.0, 101)  # the recall levels at which COCO reads the precision
NUM_BINS = 10
MIN_SCORE = 0.05  # calibration leaves out the many detections with lower scores, which are hardly ever used


def precision_at_recalls(right: np.ndarray, wrong: np.ndarray, num_objects: int) -> np.ndarray:
    """Return COCO's precision at each of its 101 recall levels, (101,); its mean is the average precision.

    The precision at a recall is the best one at that recall or a higher one; it is 0 if the recall is never
    reached.

    Args:
        right, wrong: (D,) bool, for the D detections of one class in order of decreasing score. Detections
            that are neither right nor wrong are ignored.
        num_objects: the number of objects of the class, at least 1.
    """
    counts = right | wrong
    hits = np.cumsum(right[counts])
    if not len(hits):
        return np.zeros(len(RECALLS))
    precision = hits / np.arange(1, len(hits) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    starts = np.searchsorted(hits / num_objects, RECALLS)
    return np.where(starts < len(hits), precision[np.minimum(starts, len(hits) - 1)], 0.0)


def class_curves(detections: ScoredBoxes, objects: Objects, matches: Matches, num_classes: int) -> np.ndarray:
    """Return `precision_at_recalls` for each of C classes, (C, 101); nan for a class without objects.

    `matches` are those of `detections` with `objects` at one IoU threshold, and C is `num_classes`.
    """
    counts = np.bincount(objects.labels[~objects.crowd], minlength=num_classes)
    curves = np.full((num_classes, len(RECALLS)), np.nan)
    for label in np.flatnonzero(counts):
        own = detections.labels == label
        curves[label] = precision_at_recalls(matches.right[own], matches.wrong[own], int(counts[label]))
    return curves


@dataclass(frozen=True)
class Calibration:
    """The share of detections that are right, in each of ten equal ranges of scores.

    Attributes:
        counts: (10,), the number of detections in each range.
        accuracy: (10,), the share of these detections that are right; nan if there are none.
        confidence: (10,), the mean score of these detections; nan if there are none.
        error: the expected calibration error, Σ count · |accuracy - confidence| / Σ count.
        bias: the mean score minus the share that is right; a positive value means over-confidence.
    """

    counts: np.ndarray
    accuracy: np.ndarray
    confidence: np.ndarray
    error: float
    bias: float


def calibration(scores: np.ndarray, right: np.ndarray, wrong: np.ndarray) -> Calibration | None:
    """Return the calibration of the detections that score at least MIN_SCORE, or None if there are none.

    `scores`, `right` and `wrong` are (D,), for D detections; those that are neither right nor wrong are left
    out.
    """
    used = (right | wrong) & (scores >= MIN_SCORE)
    values, hits = scores[used].astype(np.float64), right[used].astype(np.float64)
    if not len(values):
        return None
    bins = np.minimum((values * NUM_BINS).astype(int), NUM_BINS - 1)
    counts = np.bincount(bins, minlength=NUM_BINS)
    sums = (np.bincount(bins, weights=each, minlength=NUM_BINS) for each in (hits, values))
    accuracy, confidence = (
        np.divide(each, counts, out=np.full(NUM_BINS, np.nan), where=counts > 0) for each in sums
    )
    gaps = np.where(counts > 0, np.abs(accuracy - confidence), 0.0)
    error = float((counts * gaps).sum() / len(values))
    return Calibration(counts, accuracy, confidence, error, float(values.mean() - hits.mean()))

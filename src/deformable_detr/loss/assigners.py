"""Assigners that give an object several queries, and one whose pairs are known (specification §12.4).

They are for the training routes (`training/routes/`) and for repeated objects (`train.loss.object_repeats`).

Letters: B batch, Q queries, N objects of an image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..boxes import cxcywh_to_xyxy, iou
from ..classification import ClassificationScheme, at_labels
from .assignment import Assigner, ImageAssigner, Layer, Match


class Repeated(ImageAssigner):
    """An assigner that assigns as `assigner` would if each object occurred `times` times.

    In an image with many objects, this number is reduced, so that each object still gets a query. If there
    are more objects than queries, no object is repeated.
    """

    def __init__(self, assigner: ImageAssigner, times: int):
        self.assigner, self.times = assigner, times

    def matrices(
        self, logits: Tensor, boxes_cxcywh: Tensor, labels: Tensor, objects_cxcywh: Tensor
    ) -> Tensor:
        return self.assigner.matrices(logits, boxes_cxcywh, labels, objects_cxcywh)

    def assign(self, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        Q, N = matrix.shape
        times = max(1, min(self.times, Q // max(N, 1)))
        queries, objects = self.assigner.assign(np.tile(matrix, times))
        return queries, objects % max(N, 1)


class QualityAssigner(ImageAssigner):
    """An assigner that gives each object up to `most` queries that already fit it.

    The quality of a pair is a weighted mean of the IoU, with the weight `iou_share`, and the score of the
    object's class. Each object first gets one query, by the one-to-one assignment with the maximum total
    quality. Each other query becomes a candidate for the object that it fits best if the quality of the pair
    is at least `threshold`, and each object also gets its best candidates. So a query has at most one object,
    and an object has between one and `most` queries, unless there are more objects than queries.
    """

    def __init__(
        self,
        classification: ClassificationScheme,
        threshold: float = 0.4,
        most: int = 6,
        iou_share: float = 0.7,
    ):
        self.classification = classification
        self.threshold, self.most, self.iou_share = threshold, most, iou_share

    def matrices(
        self, logits: Tensor, boxes_cxcywh: Tensor, labels: Tensor, objects_cxcywh: Tensor
    ) -> Tensor:
        """Return the quality of each pair of a query and an object, (B, Q, N)."""
        scores = at_labels(self.classification.scores(logits), labels)
        overlap = iou(cxcywh_to_xyxy(boxes_cxcywh)[:, :, None], cxcywh_to_xyxy(objects_cxcywh)[:, None])
        return self.iou_share * overlap + (1 - self.iou_share) * scores

    def assign(self, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        Q, N = matrix.shape
        if N == 0:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        favourite, quality = matrix.argmax(axis=1), matrix.max(axis=1)
        sure, theirs = linear_sum_assignment(-matrix)
        favourite[sure], quality[sure] = theirs, np.inf
        order = np.lexsort((-quality, favourite))  # object after object, the best query first
        voted = favourite[order]
        rank = np.arange(Q) - np.searchsorted(voted, voted)
        chosen = order[(rank < self.most) & (quality[order] >= self.threshold)]
        return chosen, favourite[chosen]


class Known(Assigner):
    """An assigner whose pairs are known beforehand and are the same for every layer."""

    def __init__(self, match: Match):
        self.match = match

    def __call__(self, layers: Sequence[Layer]) -> list[Match]:
        return [self.match] * len(layers)

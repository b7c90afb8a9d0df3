"""Convert the last layer's predictions to detections in pixels of the original picture (specification §7.1).

Boxes are not clipped: `evaluate` measures them as they are, and `predict` clips them in its `Selection`.
A model that follows the paper needs no non-maximum suppression, because with enough training the set loss
teaches it to predict each object once. `nms_iou` is for models that were trained for a shorter time
(docs/training.md).

Letters: B batch, Q queries, N detections or boxes of one image, H and W height and width of a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..classification import ClassificationScheme, TopArrays, select_from_arrays
from ..detections import ClassTable, Detections

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Candidates:
    """The k best pairs of query and class of each of B images, best first.

    If an image has fewer than k pairs, k is their number.

    Attributes:
        pairs: the scores, class indices and query indices of the pairs, (B, k) each.
        boxes_cxcywh: the boxes of the pairs' queries, (B, k, 4), normalised by the unpadded image.
    """

    pairs: TopArrays
    boxes_cxcywh: np.ndarray

    @classmethod
    def of_arrays(
        cls, logits: np.ndarray, boxes_cxcywh: np.ndarray, classification: ClassificationScheme, k: int
    ) -> Candidates:
        """Select the k best pairs from logits (B, Q, num_logits) and boxes (B, Q, 4), both float32.

        The logits and boxes are those of Q queries for each of B images. PyTorch is imported only if the
        scheme's `scores` or `select` is from outside the package.
        """
        pairs = select_from_arrays(classification, logits, k)
        return cls(pairs, np.take_along_axis(boxes_cxcywh, pairs.queries[..., None], axis=1))


def candidates_of(
    logits: Tensor, boxes_cxcywh: Tensor, classification: ClassificationScheme, k: int
) -> Candidates:
    """Select the k best pairs from logits (B, Q, num_logits) and boxes (B, Q, 4), on the tensors' device.

    The logits and boxes are those of Q queries for each of B images. The result consists of NumPy arrays.
    """
    pairs = classification.select(logits.float(), k)
    boxes = boxes_cxcywh.float().gather(1, pairs.queries[..., None].expand(-1, -1, 4))
    return Candidates(pairs.arrays(), boxes.cpu().numpy())


def num_candidates(max_detections: int, num_queries: int, nms_iou: float | None) -> int:
    """Return the number of pairs of query and class to select for `max_detections` detections.

    With non-maximum suppression, the result is at least the number of queries, so that other pairs can take
    the place of suppressed ones.
    """
    return max_detections if nms_iou is None else max(max_detections, num_queries)


def postprocess(
    logits: Tensor,
    boxes_cxcywh: Tensor,
    classification: ClassificationScheme,
    classes: ClassTable,
    original_sizes: Sequence[tuple[int, int]],
    max_detections: int = 100,
    nms_iou: float | None = None,
) -> list[Detections]:
    """Return at most `max_detections` detections of each image, best first, with unclipped boxes in pixels.

    Args:
        logits: (B, Q, num_logits), for B images and Q queries.
        boxes_cxcywh: (B, Q, 4), normalised by the unpadded image.
        classification: the meaning of the logits.
        classes: the names and ids of the classes. Detections of classes without a name are left out, even if
            fewer than `max_detections` remain.
        original_sizes: the height and width (H, W) of each picture before resizing, in pixels.
        nms_iou: detections that overlap a better remaining one of their class by more than this IoU are left
            out; None keeps them.
    """
    results = detections_of_queries(
        logits, boxes_cxcywh, classification, classes, original_sizes, max_detections, nms_iou
    )
    return [detections for detections, _ in results]


def detections_of_queries(
    logits: Tensor,
    boxes_cxcywh: Tensor,
    classification: ClassificationScheme,
    classes: ClassTable,
    original_sizes: Sequence[tuple[int, int]],
    max_detections: int = 100,
    nms_iou: float | None = None,
) -> list[tuple[Detections, np.ndarray]]:
    """Return, for each image, the result of `postprocess` and the query indices of its detections, (N,).

    The arguments are those of `postprocess`.
    """
    k = num_candidates(max_detections, logits.shape[1], nms_iou)
    candidates = candidates_of(logits, boxes_cxcywh, classification, k)
    return detections_of_candidates(candidates, classes, original_sizes, max_detections, nms_iou)


def detections_of_candidates(
    candidates: Candidates,
    classes: ClassTable,
    original_sizes: Sequence[tuple[int, int]],
    max_detections: int,
    nms_iou: float | None,
) -> list[tuple[Detections, np.ndarray]]:
    """Return, for each image, its N detections in pixels and the query indices of these detections, (N,).

    The arguments other than `candidates` are those of `postprocess`. `num_candidates` returns the number of
    candidates that each image needs.
    """
    pairs, centres, sizes = (
        candidates.pairs,
        candidates.boxes_cxcywh[..., :2],
        candidates.boxes_cxcywh[..., 2:],
    )
    half = np.float32(0.5) * sizes
    boxes_xyxy = np.concatenate([centres - half, centres + half], axis=-1)
    ids = np.array(classes.category_ids, dtype=np.int64)
    used = np.array([name is not None for name in classes.names])
    results = []
    for boxes, scores, labels, queries, (height, width) in zip(
        boxes_xyxy, pairs.scores, pairs.labels, pairs.queries, original_sizes, strict=True
    ):
        pixels = boxes * np.array([width, height, width, height], dtype=np.float32)
        rows = np.arange(len(scores)) if nms_iou is None else unsuppressed(pixels, labels, nms_iou)
        rows = rows[:max_detections]
        rows = rows[used[labels[rows]]]
        class_indices = labels[rows].astype(np.int64)
        detections = Detections(
            boxes_xyxy=pixels[rows],
            scores=scores[rows],
            labels=class_indices,
            category_ids=ids[class_indices],
            names=tuple(classes.name(label) for label in class_indices),
            image_size=(height, width),
        )
        results.append((detections, queries[rows]))
    return results


def unsuppressed(boxes_xyxy: np.ndarray, labels: np.ndarray, nms_iou: float) -> np.ndarray:
    """Return the indices of the boxes that remain after non-maximum suppression, in ascending order.

    A box is suppressed if a better remaining box of its class overlaps it by more than the IoU `nms_iou`. The
    N boxes (N, 4) must be sorted by score, best first; `labels` (N,) are their classes.
    """
    x0, y0, x1, y1 = boxes_xyxy.T
    areas = (x1 - x0) * (y1 - y0)
    alive = np.ones(len(boxes_xyxy), dtype=bool)
    for index in range(len(boxes_xyxy)):
        if alive[index]:
            later = np.flatnonzero(alive[index + 1 :] & (labels[index + 1 :] == labels[index])) + index + 1
            widths = np.minimum(x1[index], x1[later]) - np.maximum(x0[index], x0[later])
            heights = np.minimum(y1[index], y1[later]) - np.maximum(y0[index], y0[later])
            shared = widths.clip(0) * heights.clip(0)
            # A division, shared / union, would be 0/0 for boxes without area.
            alive[later[shared > nms_iou * (areas[index] + areas[later] - shared)]] = False
    return np.flatnonzero(alive)

"""Convert the last layer's predictions to detections in pixels of the original (specification §7.1).

Boxes are not clipped: `evaluate` measures them as they are, and `predict` clips them in its `Selection`.
A model that follows the paper needs no non-maximum suppression, because with enough training the set loss
teaches it to predict each object once. `nms_iou` is for models that were trained for a shorter time
(docs/training.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from ..boxes import cxcywh_to_xyxy
from ..classification import ClassificationScheme
from ..structures import ClassTable, Detections


def postprocess(
    logits: Tensor,
    boxes_cxcywh: Tensor,
    classification: ClassificationScheme,
    classes: ClassTable,
    original_sizes: Sequence[tuple[int, int]],
    max_detections: int = 100,
    nms_iou: float | None = None,
) -> list[Detections]:
    """Return the best `max_detections` of each image, best first.

    Args:
        logits: (B, Q, num_logits).
        boxes_cxcywh: (B, Q, 4), normalised by the unpadded image.
        original_sizes: (H, W) of each picture before resizing, in pixels.
        nms_iou: detections that overlap a better one of their class by more than this IoU are left out; None
            disables this.
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
    """Return the result of `postprocess`, with the query of each detection, (N,), for each image."""
    # Suppressed detections make room for others, of which there may be as many as queries.
    candidates = max_detections if nms_iou is None else max(max_detections, logits.shape[1])
    selection = classification.select(logits.float(), candidates)
    all_boxes = cxcywh_to_xyxy(boxes_cxcywh.float())
    all_boxes = all_boxes.gather(1, selection.queries[..., None].expand(-1, -1, 4)).cpu()
    ids = np.array(classes.category_ids, dtype=np.int64)
    used = torch.tensor([name is not None for name in classes.names])
    results = []
    for boxes, scores, labels, queries, (height, width) in zip(
        all_boxes,
        selection.scores.cpu(),
        selection.labels.cpu(),
        selection.queries.cpu(),
        original_sizes,
        strict=True,
    ):
        pixels = boxes * torch.tensor([width, height, width, height])
        rows = torch.arange(len(scores)) if nms_iou is None else batched_nms(pixels, scores, labels, nms_iou)
        rows = rows[:max_detections]
        rows = rows[used[labels[rows]]]
        class_indices = labels[rows].numpy().astype(np.int64)
        detections = Detections(
            boxes_xyxy=pixels[rows].numpy().astype(np.float32),
            scores=scores[rows].numpy().astype(np.float32),
            labels=class_indices,
            category_ids=ids[class_indices],
            names=tuple(classes.name(label) for label in class_indices),
            image_size=(height, width),
        )
        results.append((detections, queries[rows].numpy()))
    return results

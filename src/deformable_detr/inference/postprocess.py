"""From the last layer's predictions to detections in pixels of the original image (specification §7.1).

Boxes are not clipped: `evaluate` measures them as they are, and `predict` clips them in its `Selection`.
There is no non-maximum suppression either if the model follows the paper: the set loss teaches it to say each
object once, given time. `nms_iou` is for models that had less of it (docs/training.md).
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
    """The best `max_detections` of each image, best first.

    Args:
        logits: (B, Q, num_logits). boxes_cxcywh: (B, Q, 4), normalised by the unpadded image.
        original_sizes: (H, W) of each picture as it was before resizing, in pixels.
        nms_iou: leave out what overlaps a better detection of its class by more than this; None: nothing.
    """
    found = detections_of_queries(
        logits, boxes_cxcywh, classification, classes, original_sizes, max_detections, nms_iou
    )
    return [detections for detections, _ in found]


def detections_of_queries(
    logits: Tensor,
    boxes_cxcywh: Tensor,
    classification: ClassificationScheme,
    classes: ClassTable,
    original_sizes: Sequence[tuple[int, int]],
    max_detections: int = 100,
    nms_iou: float | None = None,
) -> list[tuple[Detections, np.ndarray]]:
    """`postprocess`, and for each image the query (N,) that each of its detections comes from."""
    # What is suppressed makes room for others: as many as there are queries may stand in line.
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
        keep = torch.arange(len(scores)) if nms_iou is None else batched_nms(pixels, scores, labels, nms_iou)
        keep = keep[:max_detections]
        keep = keep[used[labels[keep]]]
        kept_labels = labels[keep].numpy().astype(np.int64)
        detections = Detections(
            boxes_xyxy=pixels[keep].numpy().astype(np.float32),
            scores=scores[keep].numpy().astype(np.float32),
            labels=kept_labels,
            category_ids=ids[kept_labels],
            names=tuple(classes.name(label) for label in kept_labels),
            image_size=(height, width),
        )
        results.append((detections, queries[keep].numpy()))
    return results

"""From the last layer's predictions to detections in pixels of the original image (spec.md §9).

No non-maximum suppression, no clipping: the set loss has taught the model to say each object once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .boxes import cxcywh_to_xyxy
from .classification import ClassificationScheme
from .structures import ClassTable, Detections


def postprocess(
    logits: Tensor,
    boxes_cxcywh: Tensor,
    classification: ClassificationScheme,
    classes: ClassTable,
    original_sizes: Sequence[tuple[int, int]],
    max_detections: int = 100,
) -> list[Detections]:
    """The best `max_detections` of each image, best first.

    Args:
        logits: (B, Q, num_logits). boxes_cxcywh: (B, Q, 4), normalised by the unpadded image.
        original_sizes: (H, W) of each picture as it was before resizing, in pixels.
    """
    selection = classification.select(logits.float(), max_detections)
    boxes = cxcywh_to_xyxy(boxes_cxcywh.float())
    boxes = boxes.gather(1, selection.queries[..., None].expand(-1, -1, 4)).cpu()
    scores, labels = selection.scores.cpu().numpy(), selection.labels.cpu().numpy()
    ids = np.array(classes.category_ids, dtype=np.int64)
    used = np.array([name is not None for name in classes.names])
    results = []
    for image_boxes, image_scores, image_labels, (height, width) in zip(
        boxes, scores, labels, original_sizes, strict=True
    ):
        pixels = (image_boxes * torch.tensor([width, height, width, height])).numpy()
        keep = np.flatnonzero(used[image_labels])
        kept_labels = image_labels[keep].astype(np.int64)
        results.append(
            Detections(
                boxes_xyxy=pixels[keep].astype(np.float32),
                scores=image_scores[keep].astype(np.float32),
                labels=kept_labels,
                category_ids=ids[kept_labels],
                names=tuple(classes.name(label) for label in kept_labels),
                image_size=(height, width),
            )
        )
    return results

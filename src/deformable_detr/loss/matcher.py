"""Hungarian matching: the assignment of queries to objects (DETR, section 3.1; specification §5.1).

Letters: B batch, Q queries, N objects of one image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..boxes import cxcywh_to_xyxy, generalized_iou
from ..classification import ClassificationScheme
from ..errors import NonFiniteError
from ..structures import Predictions, Target

Stage = tuple[Predictions, Sequence[Target]]  # one layer's predictions and their targets


@dataclass(frozen=True)
class Match:
    """The matched pairs (query, object) of one stage, image after image, as two int64 tensors.

    There are min(Q, N) pairs per image. `queries`: indices into the batch's B·Q queries. `objects`: indices
    into the concatenated objects of all images.
    """

    queries: Tensor
    objects: Tensor


class HungarianMatcher:
    """A function that finds each image's one-to-one assignment with the minimum total cost."""

    def __init__(
        self, classification: ClassificationScheme, class_cost: float, box_cost: float, giou_cost: float
    ):
        self.classification = classification
        self.class_cost, self.box_cost, self.giou_cost = class_cost, box_cost, giou_cost

    @torch.no_grad()
    def __call__(self, stages: Sequence[Stage]) -> list[Match]:
        """Return one `Match` per stage.

        The host waits for a GPU only once: all stages' costs are transferred together, as are the resulting
        indices.

        Raises:
            NonFiniteError: if predictions or target boxes are not finite; the message names the image.
        """
        costs = [
            self._cost(logits, boxes, target)
            for predictions, targets in stages
            for logits, boxes, target in zip(
                predictions.logits, predictions.boxes_cxcywh, targets, strict=True
            )
        ]
        matrices = iter(_to_host(costs))
        pairs: list[np.ndarray] = []  # (2, pairs) per stage
        for predictions, targets in stages:
            images = [np.empty((2, 0), dtype=np.int64)]
            first_query = first_object = 0
            for target in targets:
                queries, objects = _assign(next(matrices), target)
                images.append(np.stack([queries + first_query, objects + first_object]))
                first_query += predictions.logits.shape[1]
                first_object += len(target)
            pairs.append(np.concatenate(images, axis=1))
        return _on_device(pairs, costs[0].device) if costs else []

    def _cost(self, logits: Tensor, boxes: Tensor, target: Target) -> Tensor:
        boxes = boxes.float()
        class_cost = self.classification.matching_cost(logits.float(), target.labels)
        box_cost = torch.cdist(boxes, target.boxes_cxcywh, p=1)
        giou_cost = -generalized_iou(
            cxcywh_to_xyxy(boxes)[:, None], cxcywh_to_xyxy(target.boxes_cxcywh)[None]
        )
        return self.box_cost * box_cost + self.class_cost * class_cost + self.giou_cost * giou_cost


def _to_host(matrices: Sequence[Tensor]) -> list[np.ndarray]:
    """Copy the matrices to the CPU in one transfer."""
    if not matrices:
        return []
    numbers = torch.cat([matrix.flatten() for matrix in matrices]).cpu()
    parts = numbers.split([matrix.numel() for matrix in matrices])
    return [part.view(matrix.shape).numpy() for part, matrix in zip(parts, matrices, strict=True)]


def _on_device(pairs: Sequence[np.ndarray], device: torch.device) -> list[Match]:
    """Copy the pairs to the device in one transfer, from page-locked memory so the host need not wait."""
    indices = torch.from_numpy(np.concatenate(pairs, axis=1))
    if device.type == "cuda":
        indices = indices.pin_memory()
    indices = indices.to(device, non_blocking=True)
    parts = indices.split([stage.shape[1] for stage in pairs], dim=1)
    return [Match(queries, objects) for queries, objects in parts]


def _assign(matrix: np.ndarray, target: Target) -> tuple[np.ndarray, np.ndarray]:
    if not np.isfinite(matrix).all():
        culprit = (
            "its target boxes" if not torch.isfinite(target.boxes_cxcywh).all() else "the predictions for it"
        )
        raise NonFiniteError(f"image {target.image_id}: {culprit} are not finite numbers")
    queries, objects = linear_sum_assignment(matrix)
    return queries, objects

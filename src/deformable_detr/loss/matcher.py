"""Hungarian matching: which query answers for which object (DETR, section 3.1;
specification §5.1).

Letters: Q queries, N objects of one image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..boxes import cxcywh_to_xyxy, generalized_iou
from ..classification import ClassificationScheme
from ..errors import NonFiniteError
from ..structures import Predictions, Target


@dataclass(frozen=True)
class Match:
    """Pairs (query, object) of one image: two (min(Q, N),) int64 tensors."""

    queries: Tensor
    objects: Tensor


class HungarianMatcher:
    """The one-to-one assignment of least total cost, image by image."""

    def __init__(
        self, classification: ClassificationScheme, class_cost: float, box_cost: float, giou_cost: float
    ):
        self.classification = classification
        self.class_cost, self.box_cost, self.giou_cost = class_cost, box_cost, giou_cost

    @torch.no_grad()
    def __call__(self, predictions: Predictions, targets: Sequence[Target]) -> list[Match]:
        """One `Match` per image.

        Raises:
            NonFiniteError: naming the image whose predictions or target boxes are not finite.
        """
        # Costs of the whole batch first, then one transfer: a device is not made to wait per image.
        costs = [
            self._cost(logits, boxes, target)
            for logits, boxes, target in zip(
                predictions.logits, predictions.boxes_cxcywh, targets, strict=True
            )
        ]
        return [self._assign(cost, target) for cost, target in zip(costs, targets, strict=True)]

    def _cost(self, logits: Tensor, boxes: Tensor, target: Target) -> Tensor:
        boxes = boxes.float()
        class_cost = self.classification.matching_cost(logits.float(), target.labels)
        box_cost = torch.cdist(boxes, target.boxes_cxcywh, p=1)
        giou_cost = -generalized_iou(
            cxcywh_to_xyxy(boxes)[:, None], cxcywh_to_xyxy(target.boxes_cxcywh)[None]
        )
        return self.box_cost * box_cost + self.class_cost * class_cost + self.giou_cost * giou_cost

    @staticmethod
    def _assign(cost: Tensor, target: Target) -> Match:
        matrix = cost.cpu()
        if not torch.isfinite(matrix).all():
            culprit = (
                "its target boxes"
                if not torch.isfinite(target.boxes_cxcywh).all()
                else "the predictions for it"
            )
            raise NonFiniteError(f"image {target.image_id}: {culprit} are not finite numbers")
        queries, objects = linear_sum_assignment(matrix.numpy())
        device = cost.device
        return Match(
            torch.as_tensor(queries, dtype=torch.int64, device=device),
            torch.as_tensor(objects, dtype=torch.int64, device=device),
        )

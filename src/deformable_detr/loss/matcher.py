"""Hungarian matching: one query for each object (DETR, section 3.1; specification §5.1).

Letters: B batch, Q queries, N objects of an image.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..boxes import cxcywh_to_xyxy, generalized_iou
from ..classification import ClassificationScheme
from .assignment import ImageAssigner


class HungarianMatcher(ImageAssigner):
    """An assigner of one query to each object, with the minimum total cost.

    If an image has more objects than queries, each query gets one object, and the other objects get none.
    """

    def __init__(
        self, classification: ClassificationScheme, class_cost: float, box_cost: float, giou_cost: float
    ):
        self.classification = classification
        self.class_cost, self.box_cost, self.giou_cost = class_cost, box_cost, giou_cost

    def matrices(
        self, logits: Tensor, boxes_cxcywh: Tensor, labels: Tensor, objects_cxcywh: Tensor
    ) -> Tensor:
        """Return the cost of each pair of a query and an object, (B, Q, N).

        The cost is the sum of the scheme's matching cost, the L1 distance of the boxes (cxcywh) and their
        negative GIoU, with the weights `class_cost`, `box_cost` and `giou_cost`.
        """
        class_cost = self.classification.matching_cost(logits, labels)
        box_cost = torch.cdist(boxes_cxcywh, objects_cxcywh, p=1)
        giou_cost = -generalized_iou(
            cxcywh_to_xyxy(boxes_cxcywh)[:, :, None], cxcywh_to_xyxy(objects_cxcywh)[:, None]
        )
        return self.box_cost * box_cost + self.class_cost * class_cost + self.giou_cost * giou_cost

    def assign(self, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        queries, objects = linear_sum_assignment(matrix)
        return queries, objects

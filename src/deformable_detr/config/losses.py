"""The settings of the losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .checks import check, require
from .settings import setting

ClassificationLoss = Literal["focal", "mal", "varifocal"]


@dataclass(frozen=True)
class LossConfig:
    """The weights and parameters of the matching cost and the losses, with Deformable DETR's defaults.

    Raises:
        UserError: if a setting has a wrong type or is out of range, or if all weights of the matching cost
            are 0.
    """

    class_cost: float = setting(2.0, "Weight of the class in the matching cost.", minimum=0)
    box_cost: float = setting(5.0, "Weight of the L1 distance of boxes in the matching cost.", minimum=0)
    giou_cost: float = setting(2.0, "Weight of the generalised IoU in the matching cost.", minimum=0)
    class_weight: float = setting(2.0, "Weight of the classification loss, in every layer.", minimum=0)
    box_weight: float = setting(5.0, "Weight of the L1 loss of boxes, in every layer.", minimum=0)
    giou_weight: float = setting(2.0, "Weight of the generalised IoU loss, in every layer.", minimum=0)
    no_object_weight: float = setting(
        0.1, "Weight of the no-object class in the classification loss (softmax only).", above=0, maximum=1
    )
    classification_loss: ClassificationLoss = setting(
        "focal",
        "The target score of a matched query's class (sigmoid_focal only): 1 with `focal`, or a number that "
        "grows with the IoU of its box, so that scores distinguish good boxes from bad ones: `mal` (DEIM's "
        "matchability-aware loss, which learns as much from badly placed boxes) or `varifocal` "
        "(VarifocalNet, RT-DETR).",
    )
    focal_alpha: float = setting(
        0.25,
        "Alpha of the focal loss and of its matching cost, the weight of positives (sigmoid_focal only).",
        minimum=0,
        maximum=1,
    )
    focal_gamma: float = setting(
        2.0,
        "Gamma of the focal loss and of its matching cost, which makes easy examples count less "
        "(sigmoid_focal only).",
        minimum=0,
    )
    object_repeats: int = setting(
        1,
        "Match each object to this many queries, as if it occurred that often (not with softmax). A small "
        "data set then has more examples of objects, but duplicates must be suppressed: set model.nms_iou.",
        minimum=1,
    )
    auxiliary: bool = setting(True, "Compute losses after every decoder layer, not only after the last one.")

    def __post_init__(self) -> None:
        check(self, "train.loss.")
        require(
            self.class_cost + self.box_cost + self.giou_cost > 0,
            "train.loss: at least one of class_cost, box_cost and giou_cost must be positive.",
        )

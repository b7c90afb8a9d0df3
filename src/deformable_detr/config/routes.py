"""The settings of routes: further passes through the decoder that are used only in training."""

from __future__ import annotations

from dataclasses import dataclass

from .checks import check
from .settings import setting


@dataclass(frozen=True)
class RouteConfig:
    """Further passes through the decoder, which are used only in training. They give the model more to learn
    from each object; saved models do not contain them. A weight of 0 leaves a route out.

    Raises:
        UserError: if a setting has a wrong type or is out of range.
    """

    no_self_attention: float = setting(
        0.0,
        "Weight of the losses of a pass without self-attention, in which several queries may be trained on "
        "the same object (DAC-DETR, whose own weight is 0.33).",
        minimum=0,
    )
    instructed: float = setting(
        0.0,
        "Weight of the losses of a pass in which learned tokens allow several queries to be trained on "
        "the same object (Mr. DETR, whose own weight is 1).",
        minimum=0,
    )
    denoising: float = setting(
        0.0,
        "Weight of the losses of a pass whose queries are objects with noise (DINO, whose own weight is 1; "
        "two-stage models only).",
        minimum=0,
    )
    queries_per_object: int = setting(
        6,
        "With no_self_attention and instructed, the maximum number of queries that are trained on an object.",
        minimum=1,
    )
    quality_threshold: float = setting(
        0.4,
        "With no_self_attention and instructed, how well a query must fit an object to be trained on it, "
        "from 0 to 1. One query is trained on each object in any case.",
        minimum=0,
        maximum=1,
    )
    iou_share: float = setting(
        0.7,
        "With no_self_attention and instructed, the weight of the IoU in the measure of how well a query "
        "fits an object; the score of the object's class has the remaining weight.",
        minimum=0,
        maximum=1,
    )
    denoising_queries: int = setting(
        100,
        "With denoising, the maximum number of queries with little noise in an image, and also of those with "
        "more noise. Images with more objects than this have one of each kind for each object.",
        minimum=1,
    )

    def __post_init__(self) -> None:
        check(self, "train.routes.")

    @property
    def is_any(self) -> bool:
        return max(self.no_self_attention, self.instructed, self.denoising) > 0

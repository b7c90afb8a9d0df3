"""Build the routes of a configuration. This is the only module that chooses them."""

from __future__ import annotations

from torch import nn

from ...config import RunConfig
from ...loss import QualityAssigner, SetCriterion
from ...models import DetectionModel
from .denoising import Denoising
from .instructed import Instructed
from .no_self_attention import NoSelfAttention
from .route import Route


def build_routes(config: RunConfig, model: DetectionModel, criterion: SetCriterion) -> nn.ModuleDict:
    """Return the untrained routes by name, on the CPU; a weight of 0 leaves a route out."""
    settings, auxiliary = config.train.routes, config.train.loss.auxiliary
    assigner = QualityAssigner(
        criterion.classification,
        threshold=settings.quality_threshold,
        most=settings.queries_per_object,
        iou_share=settings.iou_share,
    )
    routes: dict[str, Route] = {}
    if settings.no_self_attention > 0:
        routes["no_self_attention"] = NoSelfAttention(assigner, settings.no_self_attention, auxiliary)
    if settings.instructed > 0:
        routes["instructed"] = Instructed(assigner, model, settings.instructed, auxiliary)
    if settings.denoising > 0:
        routes["denoising"] = Denoising(
            config.model.num_classes,
            config.model.hidden_dim,
            settings.denoising_queries,
            settings.denoising,
            auxiliary,
        )
    return nn.ModuleDict(routes)

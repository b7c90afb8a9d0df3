"""The function that training differentiates: the model's own pass and its training routes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..loss import Stage
from ..models import DetectionModel
from ..structures import DetectorOutput, FeatureBatch, ImageBatch, Target


class Learner(nn.Module):
    """A model and its training routes as one module, so that processes exchange all gradients together.

    Without routes, the list of stages that `forward` returns is empty.
    """

    def __init__(self, model: DetectionModel, routes: nn.ModuleDict):
        super().__init__()
        self.model, self.routes = model, routes

    def forward(
        self, images: ImageBatch | FeatureBatch, targets: Sequence[Target]
    ) -> tuple[DetectorOutput, list[Stage]]:
        """Return the model's output and the stages of all routes, for `SetCriterion`."""
        memory = self.model.remember(images)
        queries = self.model.queries(memory)
        output = self.model.answer(queries, memory)
        stages: list[Stage] = []
        for route in self.routes.values():
            stages += route(self.model, memory, queries, targets)
        return output, stages

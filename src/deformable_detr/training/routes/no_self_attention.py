"""A route without self-attention (DAC-DETR, Hu et al., NeurIPS 2023; specification §12.5).

Queries that do not see each other cannot suppress duplicates, so several may learn to predict the same
object. The model's own pass learns to suppress duplicates, with the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...loss import Assigner, Stage, stages_of
from ...models import DetectionModel
from ...structures import FeatureMemory, Queries, Target
from .route import Route


class NoSelfAttention(Route):
    """A pass of the model's own queries through the decoder's layers without self-attention.

    It has no parameters.

    Args:
        assigner: assigns the queries to objects.
        weight: the factor on the losses of this pass.
        auxiliary: True if all decoder layers have losses, False if only the last one does.
    """

    def __init__(self, assigner: Assigner, weight: float = 1.0, auxiliary: bool = True):
        super().__init__(weight, auxiliary)
        self.assigner = assigner

    def forward(
        self, model: DetectionModel, memory: FeatureMemory, queries: Queries, targets: Sequence[Target]
    ) -> list[Stage]:
        layers = model.decoder(queries, memory, [_unchanged] * len(model.decoder.layers))
        return stages_of(
            layers,
            targets,
            self.assigner,
            name="_no_self_attention",
            auxiliary=self.auxiliary,
            weight=self.weight,
        )


def _unchanged(content: Tensor, positions: Tensor) -> Tensor:
    return content

"""A route through the decoder, which is used only in training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import nn

from ...loss import Stage
from ...models import DetectionModel
from ...structures import FeatureMemory, Queries, Target


class Route(nn.Module, ABC):
    """A further pass through a model's decoder, with its own losses.

    It uses the model's layers and heads. Its own parameters, if any, are trained with the model's and dropped
    after training.

    Args:
        weight: the factor on its losses.
        auxiliary: whether layers before the last one have losses.
    """

    def __init__(self, weight: float, auxiliary: bool):
        super().__init__()
        self.weight, self.auxiliary = weight, auxiliary

    @abstractmethod
    def forward(
        self, model: DetectionModel, memory: FeatureMemory, queries: Queries, targets: Sequence[Target]
    ) -> list[Stage]:
        """Return a stage, with predictions and targets, for each layer that has losses, the last layer first.

        Args:
            model: the model whose decoder is used.
            memory: the encoder's output.
            queries: the queries of the model's own pass.
            targets: one target per image.
        """

"""A route with instruction tokens (Mr. DETR, Zhang et al., CVPR 2025, its third route; specification §12.5).

In the self-attention of each layer, the queries also attend to learned tokens, which allow several queries to
predict the same object in this pass. The route has its own norm after the self-attention.

Letters: B batch, Q queries, C channels, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ...loss import Assigner, Stage, stages_of
from ...models import DetectionModel
from ...models.decoder import DecoderLayer
from ...structures import FeatureMemory, Queries, Target
from .route import Route

NUM_TOKENS = 10


class Instruction(nn.Module):
    """The tokens of one decoder layer, and the norm that replaces the layer's norm after self-attention."""

    def __init__(self, dim: int):
        super().__init__()
        self.content = nn.Parameter(torch.randn(NUM_TOKENS, dim))
        self.positions = nn.Parameter(torch.randn(NUM_TOKENS, dim))
        self.norm = nn.LayerNorm(dim)

    def forward(self, layer: DecoderLayer, content: Tensor, positions: Tensor) -> Tensor:
        """Return the content (B, Q, C) after self-attention, in which the tokens are further keys and values.

        `content` and `positions` are (B, Q, C), for B images, Q queries and C channels.
        """
        tokens, their_positions = (
            part.expand(len(content), -1, -1) for part in (self.content, self.positions)
        )
        values = torch.cat([tokens, content], dim=1)  # (B, T + Q, C)
        keys = values + torch.cat([their_positions, positions], dim=1)
        # Tokens are only keys and values, because their own results would not be used.
        attended, _ = layer.self_attention(content + positions, keys, values, need_weights=False)
        normalised: Tensor = self.norm(content + layer.self_dropout(attended))
        return normalised


class Instructed(Route):
    """A further pass of the model's own queries through the decoder, whose layers have instruction tokens.

    In the self-attention of each layer, the queries also attend to these learned tokens, which allow several
    queries to predict the same object. The losses of the pass are added to those of the model's own pass.

    Mr. DETR also has a second proposal head for this pass, which starts almost as a copy of the first one and
    has the same losses. In this package, it would remain a copy, so it is left out.

    Args:
        assigner: assigns the queries to objects.
        model: the model that will be trained; the route has one set of tokens for each layer of its decoder.
        weight: the factor on the losses of this pass.
        auxiliary: True if all decoder layers have losses, False if only the last one does.
    """

    def __init__(
        self, assigner: Assigner, model: DetectionModel, weight: float = 1.0, auxiliary: bool = True
    ):
        super().__init__(weight, auxiliary)
        self.assigner = assigner
        self.instructions = nn.ModuleList(Instruction(_width(layer)) for layer in model.decoder.layers)

    def forward(
        self, model: DetectionModel, memory: FeatureMemory, queries: Queries, targets: Sequence[Target]
    ) -> list[Stage]:
        steps = [
            partial(instruction, layer)
            for instruction, layer in zip(self.instructions, model.decoder.layers, strict=True)
        ]
        return stages_of(
            model.decoder(queries, memory, steps),
            targets,
            self.assigner,
            name="_instructed",
            auxiliary=self.auxiliary,
            weight=self.weight,
        )


def _width(layer: nn.Module) -> int:
    assert isinstance(layer, DecoderLayer)
    width: int = layer.self_attention.embed_dim
    return width

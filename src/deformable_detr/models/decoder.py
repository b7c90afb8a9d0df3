"""The decoder (paper, sections 4.1 and 4.2; specification §3.3, §4.3).

In each layer, object queries attend to each other and to the memory, and every layer makes predictions.
Letters: B batch, Q queries, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from ..structures import FeatureMemory, Predictions, Queries
from .attention import MemoryAttention
from .dropout import Dropout
from .feedforward import FeedForward
from .heads import PredictionHead, corrected, logits_of_references

# The first sub-layer of a decoder layer, in which queries attend to each other: (content, positions) →
# content, all (B, Q, C). Training may replace `DecoderLayer.self_attend` with another function.
SelfAttend = Callable[[Tensor, Tensor], Tensor]


class DecoderLayer(nn.Module):
    """Self-attention, attention to the memory and a feed-forward network, each with a residual and a norm."""

    def __init__(
        self, cross_attention: MemoryAttention, dim: int, num_heads: int, ffn_dim: int, dropout: float
    ):
        super().__init__()
        self.self_attention = nn.MultiheadAttention(dim, num_heads, dropout, batch_first=True)
        nn.init.xavier_uniform_(self.self_attention.out_proj.weight)
        self.self_norm = nn.LayerNorm(dim)
        self.self_dropout = Dropout(dropout)
        self.cross_attention = cross_attention
        self.cross_norm = nn.LayerNorm(dim)
        self.cross_dropout = Dropout(dropout)
        self.feedforward = FeedForward(dim, ffn_dim, dropout)

    def forward(
        self,
        content: Tensor,
        positions: Tensor,
        references: Tensor,
        memory: FeatureMemory,
        attend: SelfAttend | None = None,
    ) -> Tensor:
        content = (attend or self.self_attend)(content, positions)
        attended = self.cross_attention(content, positions, references, memory)
        content = self.cross_norm(content + self.cross_dropout(attended))
        updated: Tensor = self.feedforward(content)
        return updated

    def self_attend(self, content: Tensor, positions: Tensor) -> Tensor:
        query = content + positions
        attended, _ = self.self_attention(query, query, content, need_weights=False)
        normalised: Tensor = self.self_norm(content + self.self_dropout(attended))
        return normalised


class Decoder(nn.Module):
    """The decoder's layers and their prediction heads: one head for all layers, or one per layer.

    `norm` is applied to the input of a layer's head, but not to the input of the next layer. Only DETR
    has a norm here; in other models, it is `nn.Identity`. With `refine_references`, each layer starts from
    the boxes that the previous layer predicted.

    Attributes:
        look_forward_twice: True if, with refinement, the loss of a layer's boxes also has a gradient for the
            boxes of the layer before it, but not of earlier ones (specification §12.2). Training sets this
            attribute; predictions do not depend on it.
    """

    def __init__(
        self,
        layers: Sequence[DecoderLayer],
        heads: Sequence[PredictionHead],
        norm: nn.Module,
        refine_references: bool,
    ):
        super().__init__()
        assert len(heads) in (1, len(layers))
        self.layers = nn.ModuleList(layers)
        self.heads = nn.ModuleList(heads)
        self.norm = norm
        self.refine_references = refine_references
        self.look_forward_twice = False

    def forward(
        self, queries: Queries, memory: FeatureMemory, attend: Sequence[SelfAttend] | None = None
    ) -> tuple[Predictions, ...]:
        """Return the predictions of all layers, in order.

        `attend` contains a function for each layer, which replaces the layer's self-attention. If it is None,
        all layers keep their self-attention.
        """
        steps: Sequence[SelfAttend | None] = attend or [None] * len(self.layers)
        content, references = queries.content, queries.references
        origins = references  # the boxes that are corrected: the references, perhaps with a gradient
        predictions = []
        for index, (layer, step) in enumerate(zip(self.layers, steps, strict=True)):
            content = layer(content, queries.positions, references, memory, step)
            head = self.heads[index % len(self.heads)]
            assert isinstance(head, PredictionHead)
            hidden = self.norm(content)
            logits, deltas = head.class_head(hidden), head.box_head(hidden)
            boxes = corrected(logits_of_references(origins), deltas)
            predictions.append(Predictions(logits, boxes))
            if self.refine_references:
                if self.look_forward_twice:
                    origins = corrected(logits_of_references(references), deltas)
                else:
                    # Detached, so that the loss of a layer's boxes has no gradient for the boxes before them.
                    origins = boxes.detach()
                references = origins.detach()
        return tuple(predictions)

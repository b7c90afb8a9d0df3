"""A decoder that samples before it projects, because queries are few and the memory is large.

Letters: B batch, Q queries, S memory tokens, C channels, M heads, D = C/M channels per head, L levels,
K points.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...models.attention import DeformableAttention, MemoryAttention
from ...models.decoder import Decoder
from ...models.heads import PredictionHead, logits_of_references
from ...ops import fused_ms_deform_attn
from ...structures import FeatureMemory, Predictions, Queries
from .encoder import side_by_side
from .memory import LocatedMemory

ONES = 8  # channels after those of the memory: a one and seven zeros, which keep the rows aligned


class LastLayerDecoder(Decoder):
    """A decoder that returns only the last layer's predictions.

    With refinement, earlier layers compute the boxes from which the next layer starts, but no class logits.
    """

    def __init__(self, decoder: Decoder):
        layers, heads = list(decoder.layers), list(decoder.heads)
        super().__init__(layers, heads, decoder.norm, decoder.refine_references)  # type: ignore[arg-type]
        self.samples = all(isinstance(layer.cross_attention, SampledFirst) for layer in decoder.layers)

    # The argument that replaces the self-attention is missing, because it is used only in training.
    def forward(  # type: ignore[override]
        self, queries: Queries, memory: FeatureMemory
    ) -> tuple[Predictions, ...]:
        assert isinstance(memory, LocatedMemory)
        if self.samples:
            memory = replace(memory, sampled=with_ones(memory))
        else:
            memory = memory.with_tokens(memory.tokens.float())
        content, references = queries.content, queries.references
        for index, layer in enumerate(self.layers):
            content = layer(content, queries.positions, references, memory)
            head = self.heads[index % len(self.heads)]
            assert isinstance(head, PredictionHead)
            if index == len(self.layers) - 1:
                break
            if self.refine_references:
                references = head.boxes(self.norm(content), logits_of_references(references))
        return (head(self.norm(content), logits_of_references(references)),)


def with_ones(memory: LocatedMemory) -> Tensor:
    """Return the tokens (B, S, C) of B images with a one and seven zeros appended to each, (B, S, C + 8).

    For tokens in the padding, all C + 8 values are zero.
    """
    B, S, C = memory.tokens.shape
    extended = memory.tokens.new_zeros(B, S, C + ONES)
    extended[..., :C] = memory.tokens
    extended[..., C] = 1.0
    return extended.masked_fill_(memory.mask[..., None], 0.0) if memory.padded else extended


class SampledFirst(MemoryAttention):
    """A `DeformableAttention` that applies its value projection after the sampling.

    Sampling is linear: Σ aₚ (W xₚ + b) = W Σ aₚ xₚ + b Σ aₚ, for the value projection W x + b, and the tokens
    xₚ and weights aₚ at the points p inside the image. Therefore each head can sample the tokens themselves
    and project a row for each query instead of each token; the second sum comes from the channel of ones. For
    a COCO picture, 300 rows for each of 8 heads replace 17,821 rows, and each head multiplies its rows by an
    eighth of the matrix.
    """

    def __init__(self, attention: DeformableAttention):
        super().__init__()
        M, C = attention.num_heads, attention.value_projection.in_features
        self.num_heads, self.num_levels = M, attention.num_levels
        self.num_points = attention.num_points
        self.sampling = side_by_side(attention.sampling_offsets, attention.attention_weights)
        self.output_projection = attention.output_projection
        projection = attention.value_projection
        extended = torch.cat([projection.weight, projection.bias[:, None]], dim=1)  # (M·D, C + 1)
        per_head = F.pad(extended, (0, ONES - 1)).view(M, -1, C + ONES)
        self.value_projections = nn.Parameter(per_head.transpose(1, 2).contiguous(), requires_grad=False)

    def forward(
        self, queries: Tensor, query_positions: Tensor, references: Tensor, memory: FeatureMemory
    ) -> Tensor:
        assert isinstance(memory, LocatedMemory)
        assert memory.sampled is not None
        B, Q, _ = queries.shape
        M, L, K = self.num_heads, self.num_levels, self.num_points
        scale = memory.valid_ratios.repeat(1, 1, references.shape[-1] // 2)  # (B, L, 2|4)
        offsets, logits = self.sampling(queries + query_positions).split([M * L * K * 2, M * L * K], dim=-1)
        sampled = fused_ms_deform_attn(
            memory.sampled[:, :, None].expand(-1, -1, M, -1),  # every head reads all channels
            memory.spatial_shapes,
            references[:, :, None] * scale[:, None],
            offsets.view(B, Q, M, L, K, 2),
            logits.view(B, Q, M, L * K),
        )
        rows = sampled.view(B, Q, M, -1).transpose(1, 2).float()  # (B, M, Q, C + ONES)
        heads = (rows @ self.value_projections).transpose(1, 2)  # (B, Q, M, D)
        output: Tensor = self.output_projection(heads.flatten(2))
        return output

"""Attention to the memory, dense (DETR) or deformable (paper, section 4.1), behind one signature:

    attention(queries, query_positions, references, memory) -> (B, Q, C)

In encoder layers, the queries are the memory's tokens; in decoder layers, they are object queries.
Letters: B batch, Q queries, S memory tokens, C channels, M heads, D = C/M channels per head, L levels,
K points per head and level.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..boxes import coordinate_dtype
from ..ops import fused_ms_deform_attn
from ..structures import FeatureMemory, SpatialShapes


class MemoryAttention(nn.Module, ABC):
    """Attention from queries to the memory."""

    @abstractmethod
    def forward(
        self, queries: Tensor, query_positions: Tensor, references: Tensor, memory: FeatureMemory
    ) -> Tensor:
        """Attend to the memory.

        Args:
            queries: (B, Q, C), the content of the Q queries of each of B images, in C channels.
            query_positions: (B, Q, C), the position encodings, which are added to the content.
            references: (B, Q, 2) points or (B, Q, 4) boxes, in [0, 1] relative to the unpadded image.
            memory: the tokens to attend to, S in total.

        Returns:
            The attention's output for each query, (B, Q, C).
        """


class DenseAttention(MemoryAttention):
    """Attention from every query to every unpadded token.

    Keys include the position encodings, but values do not. References are ignored.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float):
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, num_heads, dropout, batch_first=True)
        nn.init.xavier_uniform_(self.attention.out_proj.weight)

    def forward(
        self, queries: Tensor, query_positions: Tensor, references: Tensor, memory: FeatureMemory
    ) -> Tensor:
        output, _ = self.attention(
            queries + query_positions,
            memory.tokens + memory.positions,
            memory.tokens,
            key_padding_mask=memory.mask,
            need_weights=False,
        )
        result: Tensor = output
        return result


class DeformableAttention(MemoryAttention):
    """Attention from every query to K learned points per head and level around its reference.

    The offsets of the points and the logits of their attention weights are linear in the query, so the memory
    provides only the values.
    """

    def __init__(self, dim: int, num_heads: int, num_levels: int, num_points: int):
        super().__init__()
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        points = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(dim, points * 2)
        self.attention_weights = nn.Linear(dim, points)
        self.value_projection = nn.Linear(dim, dim)
        self.output_projection = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the projections, so that points and attention weights do not depend on the query.

        The points of head m (from 0) of M heads are in the direction (cos 2πm/M, sin 2πm/M) from the
        reference. The larger coordinate of the k-th offset (from 1) is k in absolute value, in the units of
        `fused_ms_deform_attn`. All attention weights are equal.
        """
        angles = torch.arange(self.num_heads, dtype=torch.float32) * (2 * math.pi / self.num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(-1, keepdim=True)  # onto the unit square
        steps = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        offsets = directions[:, None, None, :] * steps[None, None, :, None]  # (M, 1, K, 2)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.num_levels, -1, -1).flatten())
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_projection, self.output_projection):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self, queries: Tensor, query_positions: Tensor, references: Tensor, memory: FeatureMemory
    ) -> Tensor:
        B, Q, _ = queries.shape
        M, L, K = self.num_heads, self.num_levels, self.num_points
        # Set to zero after the projection, so that padding does not even contribute its bias.
        value = self.value_projection(memory.tokens).masked_fill(memory.mask[..., None], 0.0)
        query = queries + query_positions
        offsets, logits = self.sampling_offsets(query), self.attention_weights(query)
        # Locations need float32: near 1, bfloat16 steps by half a pixel at width 134.
        dtype = coordinate_dtype(offsets)
        # From the unpadded image to each padded level, with the same scale for (x, y) and (w, h).
        scale = memory.valid_ratios.repeat(1, 1, references.shape[-1] // 2)  # (B, L, 2|4)
        sampled = fused_ms_deform_attn(
            value.unflatten(-1, (M, -1)),  # (B, S, M, D)
            memory.spatial_shapes,
            references[:, :, None] * scale[:, None],  # (B, Q, L, 2|4)
            offsets.to(dtype).view(B, Q, M, L, K, 2),
            logits.to(dtype).view(B, Q, M, L * K),
        )
        output: Tensor = self.output_projection(sampled)
        return output


class OwnLevelAttention(MemoryAttention):
    """Deformable attention in which each query attends only to the feature level that it belongs to.

    The paper calls this variant "multi-scale inputs without multi-scale attention" (Table 2). All levels
    share the projections.

    `queries_per_level(Q, spatial_shapes)` returns how many of the Q queries belong to each level. Queries are
    in the order of the levels.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_points: int,
        queries_per_level: Callable[[int, SpatialShapes], list[int]],
    ):
        super().__init__()
        self.attention = DeformableAttention(dim, num_heads, num_levels=1, num_points=num_points)
        self.queries_per_level = queries_per_level

    def forward(
        self, queries: Tensor, query_positions: Tensor, references: Tensor, memory: FeatureMemory
    ) -> Tensor:
        counts = self.queries_per_level(queries.shape[1], memory.spatial_shapes)
        levels = zip(
            queries.split(counts, dim=1),
            query_positions.split(counts, dim=1),
            references.split(counts, dim=1),
            _levels_of(memory),
            strict=True,
        )
        return torch.cat([self.attention(*level) for level in levels], dim=1)


def tokens_per_level(num_queries: int, spatial_shapes: SpatialShapes) -> list[int]:
    """Return the number of tokens on each level, which are the queries of an encoder layer.

    `num_queries` is not used; the function has the signature of `equal_shares`.
    """
    return [height * width for height, width in spatial_shapes]


def equal_shares(num_queries: int, spatial_shapes: SpatialShapes) -> list[int]:
    """Return the number of object queries for each level, in equal shares.

    If `num_queries` is not divisible by the number of levels, the finest levels have one more query each. The
    paper does not specify to which level an object query attends.
    """
    share, remainder = divmod(num_queries, len(spatial_shapes))
    return [share + (level < remainder) for level in range(len(spatial_shapes))]


def _levels_of(memory: FeatureMemory) -> list[FeatureMemory]:
    """Return one memory per level, finest first."""
    sizes = [height * width for height, width in memory.spatial_shapes]
    parts = zip(
        memory.tokens.split(sizes, dim=1),
        memory.positions.split(sizes, dim=1),
        memory.mask.split(sizes, dim=1),
        memory.spatial_shapes,
        memory.valid_ratios.split(1, dim=1),
        strict=True,
    )
    return [
        FeatureMemory(tokens, positions, mask, (shape,), ratios)
        for tokens, positions, mask, shape, ratios in parts
    ]

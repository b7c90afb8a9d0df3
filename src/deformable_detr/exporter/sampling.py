"""The sampling of deformable attention with standard operators, in two variants that compute the same sum.

`grid_sample` uses one GridSample per level. `gather` uses none, for engines whose GridSample is missing, slow
or wrong: it fetches the four corners of each point as rows and weights them bilinearly. Both are written for
torch.export. The sizes of levels may be symbols there, so they are combined with tensors only by arithmetic.

Letters: B batch size, S memory tokens, M heads, D head dimension, Q queries, L levels, K points per level.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.attention import DeformableAttention, MemoryAttention
from ..structures import FeatureMemory, SpatialShapes


class StandardAttention(MemoryAttention, ABC):
    """`DeformableAttention` with standard operators instead of the package's own."""

    def __init__(self, attention: DeformableAttention):
        super().__init__()
        self.num_heads, self.num_levels = attention.num_heads, attention.num_levels
        self.num_points = attention.num_points
        self.sampling_offsets = attention.sampling_offsets
        self.attention_weights = attention.attention_weights
        self.value_projection = attention.value_projection
        self.output_projection = attention.output_projection

    def forward(
        self, queries: Tensor, query_positions: Tensor, references: Tensor, memory: FeatureMemory
    ) -> Tensor:
        M, L, K = self.num_heads, self.num_levels, self.num_points
        value = self.value_projection(memory.tokens).masked_fill(memory.mask[..., None], 0.0)
        query = queries + query_positions
        offsets = self.sampling_offsets(query).unflatten(-1, (M, L, K, 2))
        weights = self.attention_weights(query).unflatten(-1, (M, L * K)).softmax(-1)
        scale = memory.valid_ratios.repeat(1, 1, references.shape[-1] // 2)  # (B, L, 2|4)
        references = references.unsqueeze(2) * scale.unsqueeze(1)  # (B, Q, L, 2|4)
        locations = self._locations(references, offsets, memory.spatial_shapes)
        sampled = self.sample(value.unflatten(-1, (M, -1)), memory.spatial_shapes, locations, weights)
        output: Tensor = self.output_projection(sampled)
        return output

    def _locations(self, references: Tensor, offsets: Tensor, shapes: SpatialShapes) -> Tensor:
        """Return the sampling locations (B, Q, M, L, K, 2) as fractions of the padded levels, in [-1, 2].

        The unit of `offsets` (B, Q, M, L, K, 2) is a pixel of the level if the references are points
        (B, Q, L, 2), and half a box side divided by K if they are boxes (B, Q, L, 4). `shapes` are the
        (height, width) of the levels.
        """
        references = references.unsqueeze(2).unsqueeze(4)
        if references.shape[-1] == 4:
            references, sides = references.split(2, dim=-1)
            displacement = offsets / self.num_points * sides * 0.5
        else:
            sizes = [torch.full((), size, dtype=offsets.dtype) for shape in shapes for size in shape[::-1]]
            displacement = offsets / torch.stack(sizes).view(-1, 1, 2)
        # Every location that touches a pixel is in [-0.5, 1.5]. The bounds keep locations in the range of
        # integers.
        locations: Tensor = (references + displacement).clamp(-1.0, 2.0)
        return locations

    @abstractmethod
    def sample(self, value: Tensor, shapes: SpatialShapes, locations: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted sums (B, Q, M·D) of samples of `value` (B, S, M, D).

        `locations` are (B, Q, M, L, K, 2), and `weights` are (B, Q, M, L·K), for B pictures, Q queries, S
        memory tokens, M heads with D channels, L levels and K points. Locations (x, y) are fractions of the
        padded level. `shapes` are the (height, width) of the levels.
        """


class GridSampleAttention(StandardAttention):
    """Deformable attention that samples each level with one GridSample operator."""

    def sample(self, value: Tensor, shapes: SpatialShapes, locations: Tensor, weights: Tensor) -> Tensor:
        levels = value.permute(0, 2, 3, 1).flatten(0, 1).split(_sizes(shapes), dim=-1)  # (B·M, D, H·W)
        grids = (2 * locations - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)  # (L, B·M, Q, K, 2)
        sampled = [
            self.grid_sample(level.unflatten(-1, shape), grid)  # (B·M, D, Q, K)
            for level, shape, grid in zip(levels, shapes, grids.unbind(), strict=True)
        ]
        weighted = torch.cat(sampled, -1) * weights.transpose(1, 2).flatten(0, 1).unsqueeze(1)
        heads = weighted.sum(-1).unflatten(0, (-1, self.num_heads))  # (B, M, D, Q)
        result: Tensor = heads.permute(0, 3, 1, 2).flatten(2)
        return result

    def grid_sample(self, level: Tensor, grid: Tensor) -> Tensor:
        return F.grid_sample(level, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


class OnnxGridSampleAttention(GridSampleAttention):
    """`GridSampleAttention` for graphs that are only translated to ONNX, not run in PyTorch.

    PyTorch traces through all arithmetic of `F.grid_sample`, which takes a tenth of an export's time.
    """

    def grid_sample(self, level: Tensor, grid: Tensor) -> Tensor:
        return torch.onnx.ops.symbolic(
            "GridSample",
            (level, grid),
            {"mode": "bilinear", "padding_mode": "zeros", "align_corners": 0},
            dtype=level.dtype,
            shape=(*level.shape[:2], *grid.shape[1:3]),
            version=16,
        )


class GatherAttention(StandardAttention):
    """Deformable attention that fetches and weights the four pixels around each point, without GridSample."""

    def sample(self, value: Tensor, shapes: SpatialShapes, locations: Tensor, weights: Tensor) -> Tensor:
        B, S, M, D = value.shape
        rows = value.reshape(B * S * M, D)
        image = torch.arange(B, device=value.device)[:, None, None, None] * S
        head = torch.arange(M, device=value.device)[:, None]
        start, total = 0, torch.zeros((), dtype=value.dtype)
        levels = zip(shapes, locations.unbind(3), weights.split(self.num_points, dim=-1), strict=True)
        for (height, width), location, weight in levels:
            x, y = location.unbind(-1)
            for column, across in _neighbours(x, width):
                for row, down in _neighbours(y, height):
                    index = (image + start + row * width + column) * M + head  # (B, Q, M, K)
                    corner = rows.index_select(0, index.flatten()).view(*index.shape, D)
                    total = total + (corner * (weight * across * down)[..., None]).sum(-2)
            start = start + height * width
        return total.flatten(2)


def _neighbours(location: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the indices and weights of the pixels before, and then of those after, each location on an axis.

    Locations are fractions of the axis, which has `size` pixels. The weights of pixels outside it are zero,
    and their indices are clamped to it.
    """
    position = location * size - 0.5
    first = position.floor()
    for pixel, weight in ((first, first + 1 - position), (first + 1, position - first)):
        inside = (pixel >= 0) & (pixel <= size - 1)
        yield pixel.clamp(min=0, max=size - 1).long(), weight * inside


def _sizes(shapes: SpatialShapes) -> list[int]:
    return [height * width for height, width in shapes]

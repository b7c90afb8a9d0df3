"""Necks: the backbone's maps to feature levels of equal width (spec.md §4; paper appendix A.2).

Letters: B batch, C = hidden_dim, H, W the size of a level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Projection(nn.Module):
    """DETR's: one 1x1 convolution on the last map, without norm."""

    def __init__(self, in_channels: Sequence[int], dim: int):
        super().__init__()
        self.convolution = nn.Conv2d(in_channels[-1], dim, kernel_size=1)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [self.convolution(maps[-1])]


class GroupNorm(nn.GroupNorm):
    """PyTorch's, but a group of a single value is allowed: it becomes the bias. The coarsest level of a small
    picture is one pixel, and at width 32 a group is one channel."""

    def forward(self, input: Tensor) -> Tensor:
        return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


class ChannelMapper(nn.Module):
    """Deformable DETR's: 1x1 convolution and group norm for each map; further levels by 3x3 convolutions of
    stride 2, the first of them from the last raw map."""

    def __init__(self, in_channels: Sequence[int], dim: int, num_levels: int):
        super().__init__()
        self.num_maps = len(in_channels)
        self.levels = nn.ModuleList()
        for level in range(num_levels):
            if level < self.num_maps:
                convolution = nn.Conv2d(in_channels[level], dim, kernel_size=1)
            else:
                channels = in_channels[-1] if level == self.num_maps else dim
                convolution = nn.Conv2d(channels, dim, kernel_size=3, stride=2, padding=1)
            nn.init.xavier_uniform_(convolution.weight)
            nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
            # 32 groups in the paper; widths that 32 does not divide take the next smaller divisor.
            self.levels.append(nn.Sequential(convolution, GroupNorm(math.gcd(32, dim), dim)))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        levels: list[Tensor] = []
        for index, level in enumerate(self.levels):
            if index < self.num_maps:
                source = maps[index]
            else:
                source = maps[-1] if index == self.num_maps else levels[-1]
            levels.append(level(source))
        return levels

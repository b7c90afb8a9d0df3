"""Necks, which turn the backbone's maps into feature levels with the same number of channels.

Sources: paper, appendix A.2 and Table 2; specification §2.2.

Letters: B batch, C channels (`hidden_dim`), H and W height and width of a level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .nearest import resize_nearest


class Projection(nn.Module):
    """DETR's neck: a 1x1 convolution of the last map, without a norm."""

    def __init__(self, in_channels: Sequence[int], dim: int):
        super().__init__()
        self.convolution = nn.Conv2d(in_channels[-1], dim, kernel_size=1)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [self.convolution(maps[-1])]


class GroupNorm(nn.GroupNorm):
    """PyTorch's group norm, except that a group may consist of a single value, which becomes the bias.

    A group is a single value if the coarsest level of a small picture is one pixel and a group is one channel
    (for example, if there are 32 channels).
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type == "cpu" and input.dtype == torch.float32:
            # In channels_last, the layout of a backbone's maps in training, the result on a CPU would have up
            # to three fewer correct digits.
            input = input.contiguous()
        return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


class ChannelMapper(nn.Module):
    """Deformable DETR's neck: a 1x1 convolution with group norm for each map.

    Further levels are computed by 3x3 convolutions of stride 2, also with group norm: the first of them from
    the last backbone map, and each other one from the level before it.
    """

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
            # 32 groups, as in the paper; for widths that 32 does not divide, the greatest common divisor.
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


class FPN(nn.Module):
    """A feature pyramid (Lin et al. 2017), which processes the levels of a `ChannelMapper`.

    Beginning with the coarsest, each level is upsampled (nearest neighbour) and added to the next finer one.
    Then a 3x3 convolution with group norm is applied to each level.
    """

    def __init__(self, in_channels: Sequence[int], dim: int, num_levels: int):
        super().__init__()
        self.mapper = ChannelMapper(in_channels, dim, num_levels)
        self.outputs = nn.ModuleList()
        for _ in range(num_levels):
            convolution = nn.Conv2d(dim, dim, kernel_size=3, padding=1)
            nn.init.xavier_uniform_(convolution.weight)
            nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
            self.outputs.append(nn.Sequential(convolution, GroupNorm(math.gcd(32, dim), dim)))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        levels = self.mapper(maps)
        for finer in reversed(range(len(levels) - 1)):
            levels[finer] = levels[finer] + _resized(levels[finer + 1], like=levels[finer])
        return [output(level) for output, level in zip(self.outputs, levels, strict=True)]


class BiFPN(nn.Module):
    """EfficientDet's feature pyramid (Tan et al. 2020), which processes the levels of a `ChannelMapper`.

    By default it has three layers, as in EfficientDet-D0, because the Deformable DETR paper gives no number.
    Each layer goes from coarse to fine levels and back.
    """

    def __init__(self, in_channels: Sequence[int], dim: int, num_levels: int, num_layers: int = 3):
        super().__init__()
        self.mapper = ChannelMapper(in_channels, dim, num_levels)
        self.layers = nn.ModuleList([BiFPNLayer(dim, num_levels) for _ in range(num_layers)])

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        levels: list[Tensor] = self.mapper(maps)
        for layer in self.layers:
            levels = layer(levels)
        return levels


class BiFPNLayer(nn.Module):
    """A layer of `BiFPN`: a top-down pass from coarse to fine levels, then a bottom-up pass.

    In the top-down pass, a level fuses its input and the top-down result of the next coarser level. In the
    bottom-up pass, a level fuses its input, its top-down result and the output of the next finer level. The
    coarsest level has no top-down result, so the next finer level uses its input instead. The finest level's
    top-down result is its output.
    """

    def __init__(self, dim: int, num_levels: int):
        super().__init__()
        self.down = nn.ModuleList([Fusion(dim, num_inputs=2) for _ in range(num_levels - 1)])
        self.up = nn.ModuleList(
            [Fusion(dim, num_inputs=2 if level == num_levels - 1 else 3) for level in range(1, num_levels)]
        )

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        down = list(levels)
        for level in reversed(range(len(levels) - 1)):
            coarser = _resized(down[level + 1], like=levels[level])
            down[level] = self.down[level]([levels[level], coarser])
        up = down[:1]
        for level in range(1, len(levels)):
            finer = _resized(F.max_pool2d(up[-1], 3, stride=2, padding=1), like=levels[level])
            own = [levels[level]] if level == len(levels) - 1 else [levels[level], down[level]]
            up.append(self.up[level - 1]([*own, finer]))
        return up


class Fusion(nn.Module):
    """A weighted mean of maps of equal shape, then SiLU and a depthwise separable 3x3 convolution.

    A group norm follows the convolution. The learned weights of the mean are kept non-negative.
    """

    def __init__(self, dim: int, num_inputs: int):
        super().__init__()
        self.weights = nn.Parameter(torch.ones(num_inputs))
        self.convolution = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim, bias=False),
            nn.Conv2d(dim, dim, kernel_size=1),
            GroupNorm(math.gcd(32, dim), dim),
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        weights = self.weights.relu()
        weights = weights / (weights.sum() + 1e-4)  # "fast normalised fusion", never divided by 0
        mean = sum(weight * level for weight, level in zip(weights, maps, strict=True))
        fused: Tensor = self.convolution(mean)
        return fused


def _resized(level: Tensor, like: Tensor) -> Tensor:
    return resize_nearest(level, (like.shape[-2], like.shape[-1]))

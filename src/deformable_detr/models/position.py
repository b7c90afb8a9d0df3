"""Position encodings of tokens: sines of x and y and, if there are several levels, a learned vector per level
(paper, section 4.1, "scale-level embedding"; specification §2.3).

Letters: B batch, C channels, H and W height and width of a level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

TEMPERATURE = 10000.0


def sine_encoding(coordinates: Tensor, num_features: int) -> Tensor:
    """Encode each of the coordinates (…), in [0, 2π], as `num_features` numbers, (…, num_features).

    The features are alternating sines and cosines of decreasing frequency; `num_features` must be even.
    """
    steps = torch.arange(num_features, device=coordinates.device) // 2
    exponent = steps.to(coordinates.dtype) * (2 / num_features)
    angles = coordinates[..., None] / TEMPERATURE**exponent
    return torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], dim=-1).flatten(-2)


def points_of_level(x: Tensor, y: Tensor) -> Tensor:
    """Return the points (x, y) of all pixels of a level, row by row, (B, H·W, 2).

    `x` (B, W) and `y` (B, H) are the coordinates of the level's columns and rows.
    """
    height, width = y.shape[1], x.shape[1]
    grid = [x.unsqueeze(1).expand(-1, height, -1), y.unsqueeze(2).expand(-1, -1, width)]
    return torch.stack(grid, dim=-1).flatten(1, 2)


class SinePosition(nn.Module):
    """A sine encoding of positions, with y in the first half of the channels and x in the second half.

    Coordinates are relative to the unpadded image, so an image's encoding does not depend on its padding.
    `half_pixel` shifts coordinates to the pixels' centres, as in Deformable DETR but not in DETR.
    """

    def __init__(self, dim: int, half_pixel: bool):
        super().__init__()
        self.num_features = dim // 2
        self.shift = 0.5 if half_pixel else 0.0

    def forward(self, masks: Sequence[Tensor], dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Return the encoding of each level, (B, C, H, W) in `dtype`.

        `masks` contains a padding mask per level, (B, H, W), which is True in the padding of the B images.
        """
        return [self._encode(mask, dtype) for mask in masks]

    def _encode(self, mask: Tensor, dtype: torch.dtype) -> Tensor:
        inside = (~mask).to(dtype)
        y, x = inside.cumsum(1), inside.cumsum(2)
        y = (y - self.shift) / (y.select(1, -1).unsqueeze(1) + 1e-6) * (2 * math.pi)
        x = (x - self.shift) / (x.select(2, -1).unsqueeze(2) + 1e-6) * (2 * math.pi)
        encoded = [sine_encoding(y, self.num_features), sine_encoding(x, self.num_features)]
        return torch.cat(encoded, dim=-1).permute(0, 3, 1, 2)


class LevelPosition(nn.Module):
    """A position encoding plus one learned vector per level, whose initial values are standard normal."""

    def __init__(self, position: SinePosition, num_levels: int, dim: int):
        super().__init__()
        self.position = position
        self.level_embedding = nn.Parameter(torch.randn(num_levels, dim))

    def forward(self, masks: Sequence[Tensor], dtype: torch.dtype = torch.float32) -> list[Tensor]:
        encoded = self.position(masks, dtype)
        return [
            level + vector[None, :, None, None]
            for level, vector in zip(encoded, self.level_embedding, strict=True)
        ]

"""Where a token is: sine encodings of x and y, and for several levels, which level it is on
(paper, section 4.1, "scale-level embedding"; specification §2.3).

Letters: B batch, C channels, H, W the sizes of one level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

TEMPERATURE = 10000.0


def sine_encoding(coordinates: Tensor, num_features: int) -> Tensor:
    """Coordinates (...) in [0, 2π] to (..., num_features): sines and cosines in turn, frequency falling."""
    exponent = torch.arange(num_features, device=coordinates.device) // 2 * (2 / num_features)
    angles = coordinates[..., None] / TEMPERATURE**exponent
    return torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], dim=-1).flatten(-2)


class SinePosition(nn.Module):
    """Masks of the levels to encodings: first half of the channels from y, second half from x.

    Coordinates count unpadded pixels only, so an image is encoded the same however it is padded.
    `half_pixel` moves them to the pixels' centres: Deformable DETR does, DETR does not.
    """

    def __init__(self, dim: int, half_pixel: bool):
        super().__init__()
        self.num_features = dim // 2
        self.shift = 0.5 if half_pixel else 0.0

    def forward(self, masks: Sequence[Tensor]) -> list[Tensor]:
        """masks: (B, H, W) per level, True = padding. Returns (B, C, H, W) per level."""
        return [self._encode(mask) for mask in masks]

    def _encode(self, mask: Tensor) -> Tensor:
        inside = (~mask).float()
        y, x = inside.cumsum(1), inside.cumsum(2)
        y = (y - self.shift) / (y[:, -1:, :] + 1e-6) * (2 * math.pi)
        x = (x - self.shift) / (x[:, :, -1:] + 1e-6) * (2 * math.pi)
        encoded = [sine_encoding(y, self.num_features), sine_encoding(x, self.num_features)]
        return torch.cat(encoded, dim=-1).permute(0, 3, 1, 2)


class LevelPosition(nn.Module):
    """A position encoding plus one learned vector per level, N(0, 1) at the start."""

    def __init__(self, position: SinePosition, num_levels: int, dim: int):
        super().__init__()
        self.position = position
        self.level_embedding = nn.Parameter(torch.randn(num_levels, dim))

    def forward(self, masks: Sequence[Tensor]) -> list[Tensor]:
        encoded = self.position(masks)
        return [
            level + vector[None, :, None, None]
            for level, vector in zip(encoded, self.level_embedding, strict=True)
        ]

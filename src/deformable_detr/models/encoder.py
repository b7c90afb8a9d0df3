"""The encoder: every memory token attends to the memory (paper, section 4.1; specification §3.2).

Letters: B batch, S memory tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..boxes import coordinate_dtype
from ..structures import FeatureMemory
from .attention import MemoryAttention
from .dropout import Dropout
from .feedforward import FeedForward
from .position import points_of_level


class EncoderLayer(nn.Module):
    """Attention to the memory and a feed-forward network, each with a residual and a norm."""

    def __init__(self, attention: MemoryAttention, dim: int, ffn_dim: int, dropout: float):
        super().__init__()
        self.attention = attention
        self.norm = nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)
        self.feedforward = FeedForward(dim, ffn_dim, dropout)

    def forward(self, memory: FeatureMemory, references: Tensor) -> FeatureMemory:
        tokens = memory.tokens
        attended = self.attention(tokens, memory.positions, references, memory)
        return memory.with_tokens(self.feedforward(self.norm(tokens + self.dropout(attended))))


class Encoder(nn.Module):
    """A stack of layers of equal shape. In each layer, the reference point of a token is its pixel centre."""

    def __init__(self, layers: Sequence[EncoderLayer]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, memory: FeatureMemory) -> FeatureMemory:
        references = token_centres(memory)
        for layer in self.layers:
            memory = layer(memory, references)
        return memory


def token_centres(memory: FeatureMemory) -> Tensor:
    """Return the pixel centres (x, y) of the S tokens of B images, (B, S, 2), relative to the unpadded image.

    Tokens in the padding have a coordinate above 1.
    """
    device, dtype = memory.valid_ratios.device, coordinate_dtype(memory.tokens)
    centres = []
    for level, (height, width) in enumerate(memory.spatial_shapes):
        y = torch.arange(height, dtype=dtype, device=device) + 0.5
        x = torch.arange(width, dtype=dtype, device=device) + 0.5
        across, down = memory.valid_ratios.select(1, level).split(1, dim=1)  # (B, 1)
        centres.append(points_of_level(x / (across * width), y / (down * height)))
    return torch.cat(centres, dim=1)

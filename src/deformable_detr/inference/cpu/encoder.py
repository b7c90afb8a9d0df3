"""The deformable encoder, computed in chunks of tokens.

In an encoder layer, only the values need all tokens. The rest, from the sampling offsets to the last norm, is
computed for each token independently. Therefore a chunk passes through all these steps while it is in the
cache, and the hidden layer of the feed-forward network (73 MB for a COCO picture) never exists as a whole.

Letters: B batch, S memory tokens, C channels, M heads, D = C/M channels per head, L levels, K points.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ...models.attention import DeformableAttention
from ...models.encoder import Encoder, EncoderLayer
from ...ops import fused_ms_deform_attn
from ...structures import FeatureMemory
from .memory import LocatedMemory

CHUNK = 4096  # tokens, 16 MB of hidden layer; with smaller chunks, threads wait for each other more often


class ChunkedEncoder(Encoder):
    """An encoder whose layers overwrite their input and share one buffer of values."""

    def __init__(self, layers: Sequence[ChunkedEncoderLayer]):
        super().__init__(())
        self.layers = nn.ModuleList(layers)

    def forward(self, memory: FeatureMemory) -> FeatureMemory:
        assert isinstance(memory, LocatedMemory)
        values: Tensor | None = None
        for layer in self.layers:
            assert isinstance(layer, ChunkedEncoderLayer)
            values = layer.project_values(memory, values)
            layer.update_tokens(memory, values)
        return memory


class ChunkedEncoderLayer(nn.Module):
    """An `EncoderLayer` in two steps: the values of all tokens, then everything else, chunk by chunk."""

    def __init__(self, layer: EncoderLayer):
        super().__init__()
        attention = layer.attention
        assert isinstance(attention, DeformableAttention)
        self.num_heads, self.num_levels = attention.num_heads, attention.num_levels
        self.num_points = attention.num_points
        self.value_projection = attention.value_projection
        self.sampling = side_by_side(attention.sampling_offsets, attention.attention_weights)
        self.output_projection = attention.output_projection
        self.norm = layer.norm
        self.feedforward = layer.feedforward

    def project_values(self, memory: LocatedMemory, buffer: Tensor | None) -> Tensor:
        """Return the values, (B, M, S, D), for B images, M heads, S tokens and D channels per head.

        The values are written to `buffer`, or to a new tensor if it is None. Those of tokens in the padding
        are zeros. The rows of each head are contiguous, which is the fastest order for the operator
        `fused_ms_deform_attn`.
        """
        B, S, C = memory.tokens.shape
        M = self.num_heads
        values = memory.tokens.new_empty(B, M, S, C // M) if buffer is None else buffer
        for image, tokens in enumerate(memory.tokens):
            for chunk in chunks(S):
                projected = self.value_projection(tokens[chunk])
                if memory.padded:
                    projected.masked_fill_(memory.mask[image, chunk, None], 0.0)
                values[image, :, chunk] = projected.unflatten(-1, (M, -1)).transpose(0, 1)
        return values

    def update_tokens(self, memory: LocatedMemory, values: Tensor) -> None:
        M, L, K = self.num_heads, self.num_levels, self.num_points
        for image, tokens in enumerate(memory.tokens):
            value = values[image].transpose(0, 1)[None]  # (1, S, M, D)
            for chunk in chunks(len(tokens)):
                x = tokens[chunk]
                sampling = self.sampling(x + memory.positions[image, chunk]).float()
                offsets, logits = sampling.split([M * L * K * 2, M * L * K], dim=-1)
                sampled = fused_ms_deform_attn(
                    value,
                    memory.spatial_shapes,
                    memory.centres[image, None, chunk],
                    offsets.view(1, -1, M, L, K, 2),
                    logits.view(1, -1, M, L * K),
                )[0]
                attended = self.output_projection(sampled)
                x.copy_(self.feedforward(self.norm(attended.add_(x))))


def chunks(num_tokens: int) -> Iterator[slice]:
    return (slice(start, start + CHUNK) for start in range(0, num_tokens, CHUNK))


def side_by_side(*linears: nn.Linear) -> nn.Linear:
    """Merge linear layers with the same input into one layer, whose output concatenates their outputs."""
    merged = nn.Linear(linears[0].in_features, sum(linear.out_features for linear in linears))
    merged.weight = nn.Parameter(torch.cat([linear.weight for linear in linears]), requires_grad=False)
    merged.bias = nn.Parameter(torch.cat([linear.bias for linear in linears]), requires_grad=False)
    return merged

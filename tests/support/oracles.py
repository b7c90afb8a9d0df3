"""Reference implementations as simple as possible: nested loops over Python numbers, from the paper's
equations.

Letters: B batch, S value tokens, M heads, D head dimension, Q queries, L levels, P points of a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def ms_deform_attn_oracle(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    locations: Tensor,
    weights: Tensor,
    points_per_level: Sequence[int],
) -> Tensor:
    """Compute equation 3: value (B,S,M,D), locations (B,Q,M,P,2), weights (B,Q,M,P) → (B,Q,M·D)."""
    B, _, M, D = value.shape
    Q = weights.shape[1]
    output = torch.zeros(B, Q, M, D, dtype=torch.float64)
    for b in range(B):
        for q in range(Q):
            for m in range(M):
                point, first_token = 0, 0
                for (height, width), points in zip(spatial_shapes, points_per_level, strict=True):
                    for _ in range(points):
                        x, y = (float(each) for each in locations[b, q, m, point])
                        sample = _bilinear(value[b, :, m], first_token, height, width, x, y)
                        output[b, q, m] += float(weights[b, q, m, point]) * sample
                        point += 1
                    first_token += height * width
    return output.reshape(B, Q, M * D)


def _bilinear(tokens: Tensor, first: int, height: int, width: int, x: float, y: float) -> Tensor:
    """Sample the value of one head at (x, y) in [0, 1] of one level; pixels outside are zero."""
    total = torch.zeros(tokens.shape[1], dtype=torch.float64)
    pixel_x, pixel_y = x * width - 0.5, y * height - 0.5
    if not (-1 < pixel_x < width and -1 < pixel_y < height):  # NaN and infinity are excluded here
        return total
    left, top = math.floor(pixel_x), math.floor(pixel_y)
    for row in (top, top + 1):
        for column in (left, left + 1):
            if 0 <= row < height and 0 <= column < width:
                weight = (1 - abs(pixel_x - column)) * (1 - abs(pixel_y - row))
                total += weight * tokens[first + row * width + column].double()
    return total


def fused_ms_deform_attn_oracle(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference: Tensor,
    offsets: Tensor,
    logits: Tensor,
    points_per_level: Sequence[int],
) -> Tensor:
    """Compute the fused form from reference (B,Q,L,2|4), offsets (B,Q,M,P,2), logits (B,Q,M,P)
    (specification §3.1)."""
    B, Q, M, P = logits.shape
    locations = torch.zeros(B, Q, M, P, 2, dtype=torch.float64)
    for b in range(B):
        for q in range(Q):
            for m in range(M):
                point = 0
                for level, ((height, width), points) in enumerate(
                    zip(spatial_shapes, points_per_level, strict=True)
                ):
                    x, y, *sides = (float(each) for each in reference[b, q, level])
                    for _ in range(points):
                        dx, dy = (float(each) for each in offsets[b, q, m, point])
                        if sides:
                            dx, dy = dx / points * sides[0] * 0.5, dy / points * sides[1] * 0.5
                        else:
                            dx, dy = dx / width, dy / height
                        locations[b, q, m, point] = torch.tensor([x + dx, y + dy], dtype=torch.float64)
                        point += 1
    weights = torch.zeros(B, Q, M, P, dtype=torch.float64)
    for b in range(B):
        for q in range(Q):
            for m in range(M):
                row = [float(each) for each in logits[b, q, m]]
                exponentials = [math.exp(each - max(row)) for each in row]
                weights[b, q, m] = torch.tensor(exponentials, dtype=torch.float64) / sum(exponentials)
    return ms_deform_attn_oracle(value, spatial_shapes, locations, weights, points_per_level)

"""The public functions of multi-scale deformable attention (paper, section 4.1, equation 3).

Letters: B batch, S value tokens, M heads, D head dimension, Q queries, L levels, K points per level (K_l if
levels differ), P = Σ K_l. If all levels have the same number of points, locations and weights have separate
axes (L, K). With `points_per_level`, they have a single axis P, on which the points are sorted by level.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .native import uses_native
from .reference import fused_ms_deform_attn_reference, ms_deform_attn_reference


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    *,
    points_per_level: Sequence[int] | None = None,
) -> Tensor:
    """Return sums of bilinear samples of `value` at `sampling_locations`, weighted by `attention_weights`.

    Letters: B images, S tokens of all levels, M heads, D channels per head, Q queries, L levels, K points per
    level (K_l if levels differ).

    Args:
        value: (B, S, M, D), the maps of all levels, each flattened row by row, finest first; S = Σ H·W.
        spatial_shapes: ((H, W), ...), one pair of Python ints per level.
        sampling_locations: (B, Q, M, L, K, 2), (x, y) as fractions of each (padded) level. Pixels outside a
            level count as zeros.
        attention_weights: (B, Q, M, L, K). They usually sum to one over (L, K), but need not.
        points_per_level: (K_0, …), if the levels have different numbers of points. Locations are then
            (B, Q, M, P, 2), and weights (B, Q, M, P), with P = Σ K_l.

    Returns:
        (B, Q, M·D), in the order of the heads and in the dtype of `value`.

    Raises:
        ValueError: if the shapes disagree (the message names them), or `value` has no floating-point type.
        RuntimeError: if the native operator does not support the dtype of `value`, the tensors are on
            different devices, or a level or an image is too large.
    """
    shapes = _checked_shapes(value, spatial_shapes)
    points = _checked_points(len(shapes), sampling_locations, attention_weights, points_per_level)
    B, Q, M = attention_weights.shape[:3]
    _require_same("sampling_locations", sampling_locations.shape[:3], (B, Q, M))
    _require_same("value's (B, M)", (value.shape[0], value.shape[2]), (B, M))
    P = sum(points)
    real = _real_dtype(value)
    locations = sampling_locations.reshape(B, Q, M, P, 2).to(real)
    weights = attention_weights.reshape(B, Q, M, P).to(real)
    if uses_native(value):
        result: Tensor = torch.ops.deformable_detr.ms_deform_attn.default(
            value, _flat(shapes), locations, weights, points
        )
        return result
    return ms_deform_attn_reference(value, shapes, locations, weights, points)


def fused_ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    *,
    points_per_level: Sequence[int] | None = None,
) -> Tensor:
    """Return the result of `ms_deform_attn`, computed from references, offsets and logits.

    This function also computes the sampling locations, and the weights as the softmax of the logits. Letters:
    B images, M heads, D channels per head, Q queries, L levels, K points per level, P points of a head.

    Args:
        value: as in `ms_deform_attn`.
        spatial_shapes: as in `ms_deform_attn`.
        reference: (B, Q, L, 2) points, or (B, Q, L, 4) cxcywh boxes, as fractions of each (padded) level.
        sampling_offsets: (B, Q, M, L, K, 2), (x, y), in pixels of the level around a point, and in half box
            sides divided by K around a box.
        attention_logits: (B, Q, M, L·K); softmax runs over all points of a head.
        points_per_level: as in `ms_deform_attn`; offsets are then (B, Q, M, P, 2), and logits (B, Q, M, P).

    Returns:
        (B, Q, M·D), in the order of the heads and in the dtype of `value`.

    Raises:
        ValueError: if the shapes disagree (the message names them), or `value` has no floating-point type.
        RuntimeError: if the native operator does not support the dtype of `value`, the tensors are on
            different devices, or a level or an image is too large.
    """
    shapes = _checked_shapes(value, spatial_shapes)
    B, Q, M = attention_logits.shape[:3]
    L = len(shapes)
    if points_per_level is None:
        if sampling_offsets.ndim != 6:
            raise ValueError(
                f"sampling_offsets must be (B, Q, M, L, K, 2), not {tuple(sampling_offsets.shape)} "
                "(or pass points_per_level)"
            )
        points: tuple[int, ...] = (sampling_offsets.shape[4],) * L
    else:
        points = tuple(points_per_level)
    P = sum(points)
    if len(points) != L:
        raise ValueError(f"points_per_level has {len(points)} entries for {L} levels")
    if reference.ndim != 4 or reference.shape[-1] not in (2, 4):
        raise ValueError(f"reference must be (B, Q, L, 2) or (B, Q, L, 4), not {tuple(reference.shape)}")
    _require_same("reference", reference.shape[:3], (B, Q, L))
    _require_same("value's (B, M)", (value.shape[0], value.shape[2]), (B, M))
    offsets_shape = (B, Q, M, P, 2) if points_per_level is not None else (B, Q, M, L, points[0], 2)
    _require_same("sampling_offsets", sampling_offsets.shape, offsets_shape)
    _require_same("attention_logits", attention_logits.shape, (B, Q, M, P))
    real = _real_dtype(value)
    reference, logits = reference.to(real), attention_logits.to(real)
    offsets = sampling_offsets.reshape(B, Q, M, P, 2).to(real)
    if uses_native(value):
        result: Tensor = torch.ops.deformable_detr.fused_ms_deform_attn.default(
            value, _flat(shapes), reference, offsets, logits, points
        )
        return result
    return fused_ms_deform_attn_reference(value, shapes, reference, offsets, logits, points)


def _real_dtype(value: Tensor) -> torch.dtype:
    """Return the dtype of coordinates and weights, which is at least float32.

    A location in bfloat16 may be off by half a pixel.
    """
    return torch.float64 if value.dtype == torch.float64 else torch.float32


def _flat(shapes: Sequence[tuple[int, int]]) -> list[int]:
    return [size for shape in shapes for size in shape]


def _checked_shapes(value: Tensor, spatial_shapes: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    if value.ndim != 4:
        raise ValueError(f"value must be (B, S, M, D), not {tuple(value.shape)}")
    if not value.is_floating_point():
        raise ValueError(f"value must be of a floating-point type, not {value.dtype}")
    # Do not convert these to int: under torch.export with dynamic shapes, they are symbols, which int() would
    # turn into constants.
    shapes = tuple((height, width) for height, width in spatial_shapes)
    tokens = sum(height * width for height, width in shapes)
    if tokens != value.shape[1]:
        raise ValueError(f"spatial_shapes {shapes} hold {tokens} tokens, but value has {value.shape[1]}")
    return shapes


def _checked_points(
    num_levels: int, locations: Tensor, weights: Tensor, points_per_level: Sequence[int] | None
) -> tuple[int, ...]:
    if points_per_level is None:
        if locations.ndim != 6 or weights.ndim != 5:
            raise ValueError(
                "sampling_locations must be (B, Q, M, L, K, 2) and attention_weights (B, Q, M, L, K), not "
                f"{tuple(locations.shape)} and {tuple(weights.shape)} (or pass points_per_level)"
            )
        _require_same("sampling_locations", locations.shape[3:], (num_levels, weights.shape[4], 2))
        _require_same("attention_weights' L", weights.shape[3:4], (num_levels,))
        return (weights.shape[4],) * num_levels
    points = tuple(points_per_level)
    if len(points) != num_levels:
        raise ValueError(f"points_per_level has {len(points)} entries for {num_levels} levels")
    _require_same("sampling_locations", locations.shape[3:], (sum(points), 2))
    _require_same("attention_weights", weights.shape[3:], (sum(points),))
    return points


def _require_same(name: str, actual: Sequence[int], expected: Sequence[int]) -> None:
    if tuple(actual) != tuple(expected):
        raise ValueError(f"{name} has shape {tuple(actual)}, but {tuple(expected)} is expected")

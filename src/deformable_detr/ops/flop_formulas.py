"""The operator's cost for `torch.utils.flop_counter.FlopCounterMode` (paper, appendix A.1).

A sample costs five multiply-adds per channel: four for the bilinear interpolation and one for the attention
weight. torch counts a multiply-add as two operations. Softmax and locations, 10 operations per point against
320 for a sample of 32 channels, are not counted, just as torch counts no elementwise operations.

Letters: B batch, Q queries, M heads, D head dimension, P points of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

MULTIPLY_ADDS_PER_SAMPLE = 5


def sampling_flops(output_shape: Sequence[int], points: int) -> int:
    """Return the operations for outputs that are each a weighted sum of `points` bilinear samples."""
    return 2 * MULTIPLY_ADDS_PER_SAMPLE * math.prod(output_shape) * points


def register_flop_formulas() -> None:
    """Register the formulas of the operators in `torch.ops.deformable_detr`, which must exist."""
    operators = torch.ops.deformable_detr
    register_flop_formula([operators.ms_deform_attn, operators.fused_ms_deform_attn])(_forward)
    register_flop_formula([operators.ms_deform_attn_backward, operators.fused_ms_deform_attn_backward])(
        _backward
    )


def _forward(*inputs: Any, out_shape: Sequence[int], **_: Any) -> int:
    return sampling_flops(out_shape, points=sum(inputs[-1]))


def _backward(grad_output_shape: Sequence[int], *inputs: Any, **_: Any) -> int:
    """Count twice the forward pass, as for a matrix product: gradients of values and of locations."""
    return 2 * sampling_flops(grad_output_shape, points=sum(inputs[-1]))


def grid_sample_flops(*_: Any, out_shape: Sequence[int], **__: Any) -> int:
    """Count `aten.grid_sampler_2d`, for the operator in plain PyTorch (reference.py).

    The count is the same, including the attention weight that follows. It is meant for a counter of this
    package's models and must not be registered globally.
    """
    return sampling_flops(out_shape, points=1)


FlopFormula = Callable[..., int]
REFERENCE_FORMULAS: dict[Any, FlopFormula] = {torch.ops.aten.grid_sampler_2d: grid_sample_flops}

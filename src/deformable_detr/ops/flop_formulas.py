"""What the operator costs, for `torch.utils.flop_counter.FlopCounterMode` (paper, appendix A.1).

A sample costs five multiply-adds per channel: four for the bilinear interpolation and one for the attention
weight. torch counts two operations for a multiply-add. Softmax and locations, 10 operations per point where
a sample of 32 channels has 320, are left out, as torch leaves out everything elementwise.

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
    """Of outputs that are weighted sums of `points` bilinear samples each."""
    return 2 * MULTIPLY_ADDS_PER_SAMPLE * math.prod(output_shape) * points


def register_flop_formulas() -> None:
    """For the operators in `torch.ops.deformable_detr`, which must exist."""
    operators = torch.ops.deformable_detr
    register_flop_formula([operators.ms_deform_attn, operators.fused_ms_deform_attn])(_forward)
    register_flop_formula([operators.ms_deform_attn_backward, operators.fused_ms_deform_attn_backward])(
        _backward
    )


def _forward(*inputs: Any, out_shape: Sequence[int], **_: Any) -> int:
    return sampling_flops(out_shape, points=sum(inputs[-1]))


def _backward(grad_output_shape: Sequence[int], *inputs: Any, **_: Any) -> int:
    """Twice the forward pass, as for a matrix product: gradients of the values and of where they were."""
    return 2 * sampling_flops(grad_output_shape, points=sum(inputs[-1]))


def grid_sample_flops(*_: Any, out_shape: Sequence[int], **__: Any) -> int:
    """Formula for `aten.grid_sampler_2d` where the operator runs in plain PyTorch (reference.py): the same
    count, with the attention weight that follows. For a counter of this package's models, not to be
    registered for everybody."""
    return sampling_flops(out_shape, points=1)


FlopFormula = Callable[..., int]
REFERENCE_FORMULAS: dict[Any, FlopFormula] = {torch.ops.aten.grid_sampler_2d: grid_sample_flops}

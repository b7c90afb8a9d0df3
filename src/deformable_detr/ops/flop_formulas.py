"""The cost of multi-scale deformable attention for torch's `FlopCounterMode` (paper, appendix A.1).

A sample costs five multiply-adds per channel: four for the bilinear interpolation and one for the attention
weight. torch counts a multiply-add as two operations, so a sample of 32 channels costs 320. Softmax and
locations would add 10 operations per point; they are not counted, because torch does not count elementwise
operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

MULTIPLY_ADDS_PER_SAMPLE = 5


def sampling_flops(output_shape: Sequence[int], points: int) -> int:
    """Return the number of operations of an operator with an output of shape `output_shape`.

    Each element of the output is a weighted sum of `points` bilinear samples.
    """
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
    """Return twice the cost of the forward pass.

    The gradient of the values costs as much as the forward pass, and so do the gradients of the points and
    their weights together. torch counts the backward pass of a matrix product in the same way.
    """
    return 2 * sampling_flops(grad_output_shape, points=sum(inputs[-1]))


def grid_sample_flops(*_: Any, out_shape: Sequence[int], **__: Any) -> int:
    """Return the cost of `aten.grid_sampler_2d`, which the operator in plain PyTorch (reference.py) calls.

    The result includes the later product with the attention weight, so that the total equals that of the
    other operators. This is correct only in this package's models, so do not register the formula globally.
    """
    return sampling_flops(out_shape, points=1)


FlopFormula = Callable[..., int]
REFERENCE_FORMULAS: dict[Any, FlopFormula] = {torch.ops.aten.grid_sampler_2d: grid_sample_flops}

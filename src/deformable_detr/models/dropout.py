"""Dropout that is fast on CPUs.

On processors other than Intel's, PyTorch draws the values of a mask one by one. Each value takes 17 ns. The
product with the 256 x 1024 matrix of a feed-forward layer takes the same time per value. Here, one 64-bit
random number is used for four values. The letter p stands for the probability of a zero.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_STEPS = 2**16  # 16 random bits per value: probabilities are multiples of 1/65536
_VALUES_PER_DRAW = 4


class Dropout(nn.Module):
    """Dropout as in torch.nn.Dropout.

    In training, each value is set to zero with probability p and is otherwise divided by 1 - p. On a CPU, p
    is rounded to a multiple of 1/65536 below 1, also in the divisor, so that the mean is preserved. Random
    numbers come from PyTorch's global generator.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        result: Tensor = _Dropout.apply(x, self.p)
        return result

    def extra_repr(self) -> str:
        return f"p={self.p}"


def relu_dropout_(x: Tensor, p: float) -> Tensor:
    """Return `dropout(relu(x))`, and overwrite `x`, whose old values must no longer be needed.

    On a CPU, the result is in the memory of `x`. The backward pass needs only this result, in which both
    negative and dropped values are zero, so that it takes a third of the usual memory. On other devices, only
    relu works in the memory of `x`, and dropout returns a new tensor. If p is 0, only relu is applied.

    Args:
        x: a tensor of any shape.
        p: the probability of a zero, below 1; on a CPU, it is rounded to a multiple of 1/65536.
    """
    if p == 0:
        return F.relu(x, inplace=True)
    if x.device.type != "cpu":
        return F.dropout(F.relu(x, inplace=True), p)
    result: Tensor = _ReluDropout.apply(x, p)
    return result


class _Dropout(torch.autograd.Function):
    """Dropout that keeps one byte per value for the backward pass, instead of a mask in the type of `x`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        mask, ctx.scale = _draw(x, p)
        ctx.save_for_backward(mask.bool())
        return mask.mul_(ctx.scale).mul_(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return kept.to(grad.dtype).mul_(ctx.scale).mul_(grad), None


class _ReluDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        mask, ctx.scale = _draw(x, p)
        x.relu_().mul_(mask).mul_(ctx.scale)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (result,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(grad, result, 0).mul_(ctx.scale), None


def _draw(x: Tensor, p: float) -> tuple[Tensor, float]:
    """Return a random mask like `x`, with 0 for dropped values and 1 for others, and the scale of the others.

    A value is dropped with the probability `p`, rounded to a multiple of 1/65536 below 1. The scale preserves
    the mean.
    """
    num_dropped = min(round(p * _STEPS), _STEPS - 1)
    draws = torch.empty(-(-x.numel() // _VALUES_PER_DRAW), dtype=torch.int64)
    lowest = torch.iinfo(torch.int64).min
    bits = draws.random_(lowest, None).view(torch.int16)[: x.numel()].view(x.shape)
    mask = torch.empty(x.shape, dtype=x.dtype)
    torch.ge(bits, num_dropped - _STEPS // 2, out=mask)
    return mask, _STEPS / (_STEPS - num_dropped)

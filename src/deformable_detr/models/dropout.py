"""Dropout that a CPU can afford.

On processors that are not Intel's, PyTorch draws its masks value by value: 17 ns each, as long as the product
with the 256 x 1024 matrix of a feed-forward layer takes for it. Here a 64-bit draw serves four values.
Letters: p the probability of a zero.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_STEPS = 2**16  # 16 random bits for each value: probabilities are multiples of 1/65536
_VALUES_PER_DRAW = 4


class Dropout(nn.Module):
    """torch.nn.Dropout's rule: in training a value is zero with probability p, else divided by 1 - p.

    On a CPU p is taken to the nearest 1/65536, and the divisor with it, so that the mean stays what it is.
    Draws from PyTorch's global generator.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        kept, scale = _draw(x, self.p)
        return x * kept.mul_(scale)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def relu_dropout_(x: Tensor, p: float) -> Tensor:
    """`dropout(relu(x))` in the memory of `x`, which nobody may need afterwards. p = 0: relu alone.

    A zero of the result tells the backward pass of both; it keeps nothing else, a third of the memory.
    """
    if p == 0:
        return F.relu(x, inplace=True)
    if x.device.type != "cpu":
        return F.dropout(F.relu(x, inplace=True), p)
    result: Tensor = _ReluDropout.apply(x, p)
    return result


class _ReluDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        kept, ctx.scale = _draw(x, p)
        x.relu_().mul_(kept).mul_(ctx.scale)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (result,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(grad, result, 0).mul_(ctx.scale), None


def _draw(x: Tensor, p: float) -> tuple[Tensor, float]:
    """Ones and zeros like `x`, and the scale that keeps the mean."""
    num_dropped = min(round(p * _STEPS), _STEPS - 1)
    draws = torch.empty(-(-x.numel() // _VALUES_PER_DRAW), dtype=torch.int64)
    lowest = torch.iinfo(torch.int64).min
    bits = draws.random_(lowest, None).view(torch.int16)[: x.numel()].view(x.shape)
    kept = torch.empty(x.shape, dtype=x.dtype)
    torch.ge(bits, num_dropped - _STEPS // 2, out=kept)
    return kept, _STEPS / (_STEPS - num_dropped)

"""ReLU6 with half of the usual memory in training.

PyTorch's backward formula of ReLU6 uses the input. If the module works in place, as in EfficientNet-Lite0
and timm's MobileNets, PyTorch therefore copies the input first. The result can replace the input in the
formula, because both are strictly between 0 and 6 at the same positions. The next convolution keeps the
result in any case.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def keep_only_results_of_relu6(module: nn.Module) -> None:
    """Make each in-place ReLU6 in `module` keep its result for the backward pass instead of its input.

    Outputs, gradients and the names of the weights do not change.
    """
    for part in module.modules():
        if isinstance(part, nn.ReLU6) and part.inplace:
            part.forward = relu6_  # type: ignore[method-assign, assignment]


def relu6_(x: Tensor) -> Tensor:
    """Return `relu6(x)` in the memory of `x`, whose old values must no longer be needed."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return F.relu6(x, inplace=True)
    result: Tensor = _ReLU6.apply(x)
    return result


class _ReLU6(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        F.relu6(x, inplace=True)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (result,) = ctx.saved_tensors
        gradient: Tensor = torch.ops.aten.hardtanh_backward(grad, result, 0, 6)
        return gradient

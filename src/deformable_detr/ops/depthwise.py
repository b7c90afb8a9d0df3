"""Depthwise convolution that is fast in training on a CPU (csrc/depthwise.cpp).

PyTorch's backward pass for a depthwise convolution takes several times as long as its forward pass. In the
backward pass used here, each pixel of the input's gradient gathers its terms through the kernel's taps, and
the weight's gradient is a sum of products of the output's gradient and the shifted input. Both computations
are vectorised over neighbouring channels.

Letters: B batch, C channels, H and W height and width of the input map, H' and W' those of the output map,
kh and kw those of the kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .native import native_available


def depthwise_is_native(input: Tensor) -> bool:
    """Return whether `depthwise_conv` supports `input`.

    `depthwise_conv` requires the native library and a float32 or float64 tensor on the CPU.
    """
    return native_available() and input.device.type == "cpu" and input.dtype in (torch.float32, torch.float64)


def depthwise_conv(
    input: Tensor, weight: Tensor, bias: Tensor, stride: int, start: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """Convolve each channel of `input` with a separate kernel.

    `depthwise_is_native(input)` must be True. The output can be differentiated once.

    Args:
        input: (B, C, H, W), fastest with the channels last in memory (`torch.channels_last`).
        weight: (C, 1, kh, kw), kernels of height kh and width kw.
        bias: (C,). No gradient is computed for it.
        stride: the stride in both directions.
        start: the number of rows of zeros above the input, and of columns of zeros to its left.
        size: (H', W'), the height and width of the output; zeros are added below the input and to its right
            as needed.

    Returns:
        (B, C, H', W'), with the channels last in memory.
    """
    output: Tensor = _DepthwiseConv.apply(input, weight, bias, stride, start, size)
    return output


class _DepthwiseConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor,
        stride: int,
        start: tuple[int, int],
        size: tuple[int, int],
    ) -> Tensor:
        pixels = input.permute(0, 2, 3, 1).contiguous()
        taps = weight.flatten(1).t().contiguous().unflatten(0, weight.shape[2:])  # (kh, kw, C)
        ctx.save_for_backward(pixels, taps)
        ctx.geometry = stride, *start
        output: Tensor = torch.ops.deformable_detr.depthwise_conv(pixels, taps, bias, stride, *start, *size)
        # A view, which `permute` returns, could not be changed in place by the activation that follows.
        channels_second = output.permute(0, 3, 1, 2)
        return torch.empty(0, dtype=output.dtype).set_(
            output.untyped_storage(), 0, channels_second.shape, channels_second.stride()
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        pixels, taps = ctx.saved_tensors
        grad_pixels, grad_taps = torch.ops.deformable_detr.depthwise_conv_backward(
            grad.permute(0, 2, 3, 1).contiguous(), pixels, taps, *ctx.geometry
        )
        grad_weight = grad_taps.sum(0).flatten(0, 1).t().contiguous().view(-1, 1, *taps.shape[:2])
        return grad_pixels.permute(0, 3, 1, 2), grad_weight, None, None, None, None

"""Convolutions for training: norms are merged.

On a CPU, depthwise convolutions also have native kernels, and compute in float32 under autocast.

Letter: C, the number of output channels of a convolution.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...inference.convolutions import is_depthwise, norms_after_convolutions, pads_by_size
from ...ops.depthwise import depthwise_conv, depthwise_is_native


def merge_norms(backbone: nn.Module) -> bool:
    """Merge the convolutions of `backbone` with the frozen norms after them, in place.

    A merged norm is replaced by its activation, if it contains one. Convolutions whose padding
    `NormedConvolution` does not support keep their norms.

    Returns:
        True if anything was merged.
    """
    pairs = [
        (convolution, norm)
        for convolution, norm in norms_after_convolutions(backbone)
        if _pads_with_zeros(backbone.get_submodule(convolution))
    ]
    for convolution, norm in pairs:
        merged = NormedConvolution(backbone.get_submodule(convolution), backbone.get_submodule(norm))
        backbone.set_submodule(norm, getattr(merged.norm, "act", nn.Identity()))
        backbone.set_submodule(convolution, merged)
    return bool(pairs)


def _pads_with_zeros(convolution: Any) -> bool:
    return convolution.padding_mode == "zeros" and not isinstance(convolution.padding, str)


class NormedConvolution(nn.Module):
    """The function norm(convolution(x)) for a frozen norm, without the norm's own passes over the map.

    For a convolution with the weight W and the bias b, norm(W x + b) = (scale · W) x + shift, with a scale
    and a shift per channel. An activation that the norm contains is not applied. The weight is scaled in each
    forward pass, which takes little time, so W is still trained, and weights that are loaded later take
    effect. Under autocast, the map also keeps its 16-bit type, whereas the norm would convert it to float32.
    """

    def __init__(self, convolution: Any, norm: Any):
        super().__init__()
        self.convolution, self.norm = convolution, norm
        self._versions: list[int] = []
        self.pads_by_size = pads_by_size(convolution)
        # For 3x3 kernels with a stride, PyTorch's gradient is faster on large maps.
        self.is_native = (
            is_depthwise(convolution)
            and convolution.bias is None  # the kernels have no gradient for it
            and convolution.stride[0] == convolution.stride[1]
            and convolution.dilation == (1, 1)
            and (convolution.kernel_size[0] >= 5 or convolution.stride == (1, 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        convolution = self.convolution
        scale, shift = self._scale_and_shift()
        if convolution.bias is not None:
            shift = shift + convolution.bias * scale
        weight = convolution.weight * scale[:, None, None, None]
        (top, bottom), (left, right) = (self._padding(x, axis) for axis in (0, 1))
        if self.is_native and weight.requires_grad and depthwise_is_native(x):
            height, width = (
                (length + sum(padding) - kernel) // stride + 1
                for length, padding, kernel, stride in zip(
                    x.shape[2:],
                    ((top, bottom), (left, right)),
                    convolution.kernel_size,
                    convolution.stride,
                    strict=True,
                )
            )
            return depthwise_conv(x, weight, shift, convolution.stride[0], (top, left), (height, width))
        if (top, left) == (bottom, right):
            padding = top, left
        else:
            x, padding = F.pad(x, (left, right, top, bottom)), (0, 0)
        return F.conv2d(
            x, weight, shift, convolution.stride, padding, convolution.dilation, convolution.groups
        )

    def _scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Return the scale (C,) and the shift (C,) of the norm, without the convolution's bias.

        Both are stored, and computed again only if the norm's constants have been changed in place.
        """
        norm = self.norm
        constants = [norm.weight, norm.bias, norm.running_mean, norm.running_var]
        if self._versions != (versions := [constant._version for constant in constants]):
            self._versions = versions
            self._scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
            self._shift = norm.bias - norm.running_mean * self._scale
        return self._scale, self._shift

    def _padding(self, x: Tensor, axis: int) -> tuple[int, int]:
        """Return the numbers of zeros to add before and after `x` along `axis` (0: height, 1: width)."""
        convolution = self.convolution
        if not self.pads_by_size:
            return convolution.padding[axis], convolution.padding[axis]
        length, stride = x.shape[2 + axis], convolution.stride[axis]
        reach = (convolution.kernel_size[axis] - 1) * convolution.dilation[axis] + 1
        total = max((-(-length // stride) - 1) * stride + reach - length, 0)
        return total // 2, total - total // 2


def keep_depthwise_in_float32(module: nn.Module) -> bool:
    """Make the depthwise convolutions below `module` compute in float32 under a CPU's autocast, in place.

    On a CPU, PyTorch's gradient of a 5x5 depthwise convolution takes several times as long in bfloat16. The
    module that contains such a convolution may only call it, not read its attributes.

    Returns:
        True if there are any.
    """
    found = False
    for name, part in list(module.named_children()):
        convolution = part.convolution if isinstance(part, NormedConvolution) else part
        if isinstance(convolution, nn.Conv2d) and is_depthwise(convolution):
            setattr(module, name, _InFloat32(part))
            found = True
        else:
            found |= keep_depthwise_in_float32(part)
    return found


class _InFloat32(nn.Module):
    """A layer that computes in float32 under a CPU's autocast, and as usual otherwise.

    Under autocast, its output has autocast's type.
    """

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor
        if not torch.is_autocast_enabled("cpu"):
            output = self.layer(x)
            return output
        with torch.autocast("cpu", enabled=False):
            output = self.layer(x.float())
        return output.to(torch.get_autocast_dtype("cpu"))

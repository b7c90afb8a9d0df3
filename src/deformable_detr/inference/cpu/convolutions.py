"""Optimise backbone and neck: fold frozen batch norms into convolutions, store weights in channels_last.

Letters: B batch; C channels; H, W height and width of a map.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from ...models.neck import GroupNorm
from ...ops import DeformConv2d

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def fold_norms(backbone: nn.Module) -> None:
    """Move a frozen norm's scale and shift into the preceding convolution if only the norm reads its output.

    The readers are found by tracing. A backbone that cannot be traced keeps its norms.
    """
    try:
        graph = _Tracer().trace(backbone)
    except (fx.proxy.TraceError, TypeError):
        return
    modules = dict(backbone.named_modules())
    calls = [node.target for node in graph.nodes if node.op == "call_module"]
    for node in graph.nodes:
        if node.op != "call_module" or not _is_frozen_norm(modules[node.target]):
            continue
        before = node.args[0]
        if (
            before.op == "call_module"
            and isinstance(modules[before.target], nn.Conv2d)
            and len(before.users) == 1
            and calls.count(before.target) == calls.count(node.target) == 1
        ):
            norm = modules[node.target]
            _fold(modules[before.target], norm)
            backbone.set_submodule(node.target, getattr(norm, "act", nn.Identity()))


class _Tracer(fx.Tracer):
    """Treats norms and convolutions as leaves, because some of them pad by the picture's size."""

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        known = isinstance(module, nn.Conv2d | DeformConv2d) or _is_frozen_norm(module)
        return known or super().is_leaf_module(module, qualified_name)


def _is_frozen_norm(module: nn.Module) -> bool:
    """Return True for a frozen norm of torchvision or timm (which may contain an activation).

    They are recognised by their buffers, so that timm need not be imported for a ResNet.
    """
    constants = {name for name, _ in module.named_buffers(recurse=False)}
    return constants == {"weight", "bias", "running_mean", "running_var"}


def _fold(convolution: Any, norm: Any) -> None:
    """Fold a norm into a convolution.

    norm(conv(x)) = scale · (W x + b - mean) + shift, with scale = weight / √(variance + ε).
    """
    scale: Tensor = norm.weight * (norm.running_var + norm.eps).rsqrt()
    bias = -norm.running_mean if convolution.bias is None else convolution.bias - norm.running_mean
    weight = convolution.weight * scale[:, None, None, None]
    convolution.weight = nn.Parameter(weight, requires_grad=False)
    convolution.bias = nn.Parameter(bias * scale + norm.bias, requires_grad=False)


def in_channels_last(module: ModuleT) -> ModuleT:
    """Store the channels of a pixel next to each other.

    In this format, a 1x1 convolution is a matrix product, depthwise convolutions load whole vectors, and
    flattening a level to tokens is free.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            part.to(memory_format=torch.channels_last)
    return module


def norm_groups_in_two_passes(neck: nn.Module) -> None:
    for name, module in list(neck.named_modules()):
        if type(module) is GroupNorm:
            neck.set_submodule(name, _TwoPassGroupNorm(module))


class _TwoPassGroupNorm(nn.Module):
    """Compute group norm of tokens (B, H·W, C): the mean first, then the variance of the deviations from it.

    PyTorch's group norm in channels_last adds up x and x² one pixel after the other, and takes the variance
    as E[x²] - E[x]². On a map that is 60 % uniform, its error is 2e-4, even if the mean was subtracted
    before. The error of this class is 1e-6, like that of PyTorch's group norm in its usual memory format.
    """

    def __init__(self, norm: GroupNorm):
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        tokens = x.permute(0, 2, 3, 1).reshape(B, H * W, C)
        centred = tokens - self._of_groups(tokens)
        scale = (self._of_groups(centred.square()) + self.norm.eps).rsqrt() * self.norm.weight
        normalised: Tensor = torch.addcmul(self.norm.bias, centred, scale)
        return normalised.view(B, H, W, C).permute(0, 3, 1, 2)

    def _of_groups(self, tokens: Tensor) -> Tensor:
        """Return the mean of each group of channels over all tokens, (B, 1, C)."""
        groups = tokens.mean(1, keepdim=True).unflatten(-1, (self.norm.num_groups, -1))
        means: Tensor = groups.mean(-1, keepdim=True).expand_as(groups).flatten(2)
        return means


def keep_sampling_in_float32(module: nn.Module) -> None:
    """Keep deformable convolutions in float32, because they compute coordinates."""
    for name, part in list(module.named_modules()):
        if isinstance(part, DeformConv2d):
            module.set_submodule(name, _InFloat32(part))


class _InFloat32(nn.Module):
    def __init__(self, module: nn.Module):
        super().__init__()
        self.hidden = (module,)  # `to` does not find a module in a tuple

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.hidden[0](x.float())
        return output.to(x.dtype)

"""Faster convolutions: frozen batch norms are folded into them, and their weights get the fastest layout.

A model's replicas for CPUs and GPUs (cpu/, cuda/) use both steps; exported models use only the folding.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from ..models.efficientnet_lite import Conv2dSame
from ..ops import DeformConv2d

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def fold_norms(backbone: nn.Module) -> None:
    """Fold frozen norms into the convolutions before them, in place.

    `norms_after_convolutions` determines which norms are folded; the others stay. If a folded norm contains
    an activation, as in timm, the activation replaces the norm.
    """
    for convolution, name in norms_after_convolutions(backbone):
        norm = backbone.get_submodule(name)
        _fold(backbone.get_submodule(convolution), norm)
        backbone.set_submodule(name, getattr(norm, "act", nn.Identity()))


def norms_after_convolutions(backbone: nn.Module) -> list[tuple[str, str]]:
    """Return the names (convolution, norm) of each convolution whose output is read only by a frozen norm.

    The pairs are in the order of computation. Convolutions and norms that are called more than once are left
    out. So are subclasses of `nn.Conv2d`, whose output may not be linear in their weight, except those that
    pad by size. If the backbone cannot be traced, the list is empty.
    """
    try:
        graph = _Tracer().trace(backbone)
    except (fx.proxy.TraceError, TypeError):
        return []
    modules = dict(backbone.named_modules())
    calls = [node.target for node in graph.nodes if node.op == "call_module"]
    pairs = []
    for node in graph.nodes:
        if node.op != "call_module" or not _is_frozen_norm(modules[node.target]):
            continue
        before = node.args[0]
        if (
            before.op == "call_module"
            and _is_plain(modules[before.target])
            and len(before.users) == 1
            and calls.count(before.target) == calls.count(node.target) == 1
        ):
            pairs.append((before.target, node.target))
    return pairs


def pads_by_size(module: nn.Module) -> bool:
    """Return whether `module` is a convolution that pads by the picture's size, as TensorFlow does.

    The package has one, and so has timm. The class is recognised by its name, which is the same in both, so
    that timm need not be imported.
    """
    return type(module).__name__ == Conv2dSame.__name__


def _is_plain(module: nn.Module) -> bool:
    return type(module) is nn.Conv2d or pads_by_size(module)


class _Tracer(fx.Tracer):
    """A tracer that does not trace the code inside frozen norms and convolutions.

    Some convolutions compute their padding from the picture's size, which cannot be traced.
    """

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        known = isinstance(module, nn.Conv2d | DeformConv2d) or _is_frozen_norm(module)
        return known or super().is_leaf_module(module, qualified_name)


def _is_frozen_norm(module: nn.Module) -> bool:
    """Return True for a frozen norm of the package or of timm (which may contain an activation).

    Frozen norms are recognised by their buffers, so that timm need not be imported.
    """
    constants = {name for name, _ in module.named_buffers(recurse=False)}
    return constants == {"weight", "bias", "running_mean", "running_var"}


def _fold(convolution: Any, norm: Any) -> None:
    """Fold a norm into a convolution, in place.

    norm(W x + b) = scale · (W x + b - mean) + shift, with scale = weight / √(variance + ε), for an input x, a
    convolution with the kernel W and the bias b (0 if there is none), and a norm with a mean, a variance, a
    weight, and its bias as the shift.
    """
    scale: Tensor = norm.weight * (norm.running_var + norm.eps).rsqrt()
    bias = -norm.running_mean if convolution.bias is None else convolution.bias - norm.running_mean
    weight = convolution.weight * scale[:, None, None, None]
    convolution.weight = nn.Parameter(weight, requires_grad=False)
    convolution.bias = nn.Parameter(bias * scale + norm.bias, requires_grad=False)


def is_depthwise(module: Any) -> bool:
    """Return whether a convolution has several groups, each with one input and one output channel."""
    return bool(1 < module.in_channels == module.groups == module.out_channels)


def has_depthwise(module: nn.Module) -> bool:
    """Return whether any convolution in `module` is depthwise."""
    return any(isinstance(part, nn.Conv2d) and is_depthwise(part) for part in module.modules())


def fastest_layout(module: nn.Module, device: torch.device) -> torch.memory_format:
    """Return the memory format in which the convolutions of `module` are fastest on `device`.

    In channels_last, which stores the channels of a pixel next to each other, a 1x1 convolution is a matrix
    product, depthwise convolutions load whole vectors, and flattening a level to tokens needs no copy. On a
    GPU, however, cuDNN computes depthwise convolutions in this format, and prepares them for every new size
    of picture. On an H100, a new size took 2 to 9 seconds instead of 0.1 to 0.2 (docs/gpu.md). Modules with
    depthwise convolutions therefore get `torch.contiguous_format` on GPUs.
    """
    if device.type != "cpu" and has_depthwise(module):
        return torch.contiguous_format
    return torch.channels_last


def in_layout(module: ModuleT, layout: torch.memory_format) -> ModuleT:
    """Convert the weights of a module's convolutions to `layout`, in place, and return the module."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            part.to(memory_format=layout)
    return module


def keep_sampling_in_float32(module: nn.Module) -> None:
    """Make the deformable convolutions in `module` compute in float32 even after it is converted to 16 bits.

    They compute coordinates, for which 16 bits are not enough. Their outputs get the type of their inputs.
    """
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

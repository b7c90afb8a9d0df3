"""Integrate the native operators into PyTorch.

The library (csrc/, docs/operator.md) defines `ms_deform_attn` and `fused_ms_deform_attn` and their backward
operators in `torch.ops.deformable_detr`, with kernels for the CPU. If the library is missing, this module
defines the operators without these kernels. In either case, it registers the kernels for GPUs
(triton_operators.py) and the parts that LibTorch's stable ABI cannot express: shapes, autograd and vmap. If
the kernels for the CPU or for GPUs are missing, the public functions in `ms_deform_attn.py` use plain PyTorch
there, after one warning. On other kinds of devices, they use plain PyTorch without a warning.

Letters: B batch, M heads, Q queries.
"""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .flop_formulas import register_flop_formulas

_PACKAGE = "deformable_detr.ops"


class NativeOperatorMissing(RuntimeWarning):
    """A warning that the native operator for the CPU or GPUs is missing, so a much slower one is used."""


def native_available() -> bool:
    """Return whether the native CPU operator is loaded."""
    return _MISSING is None


def kernels() -> dict[str, str]:
    """Describe the kernels that compute multi-scale deformable attention, by device type.

    `cpu` is "native (INSTRUCTION SET)" or "reference (REASON)"; `cuda` (NVIDIA's GPUs, and AMD's under
    ROCm) is "Triton" or "reference (REASON)"; `other` describes all other devices.
    """
    cpu = f"native ({cpu_kernels()[0]})" if _MISSING is None else f"reference ({_MISSING})"
    cuda = "Triton" if _TRITON_MISSING is None else f"reference ({_TRITON_MISSING})"
    return {"cpu": cpu, "cuda": cuda, "other": "reference"}


def cpu_kernels() -> tuple[str, ...]:
    """Return the instruction set in use, followed by all compiled sets that this CPU can run, best first.

    The native library must be loaded (`native_available`).
    """
    return tuple(torch.ops.deformable_detr.cpu_kernels().split())


def uses_native(value: Tensor) -> bool:
    """Return whether the native operator can be used on the device of `value`; warn once if it is missing.

    The native operator is that of csrc/ on the CPU, and Triton's on NVIDIA's and AMD's GPUs. On the device
    "meta", which has only shapes, the result is True. On other devices, it is False, without a warning.
    """
    device = value.device.type
    if device == "meta":  # shapes only: the operator's rule is 20 times faster than grid_sample's
        return True
    if device == "cpu" and _MISSING is not None:
        _warn_once(
            "its operator in plain PyTorch, which is 10 to 40 times slower than the native one: "
            f"{_MISSING}. Install a wheel of deformable-detr, or install a C++ compiler and then the package "
            "again."
        )
        return False
    if device == "cuda" and _TRITON_MISSING is not None:
        _warn_once(
            "its operator on the GPU in plain PyTorch, which is slower and needs ten times the memory: "
            f"{_TRITON_MISSING}. Run `pip install triton`."
        )
        return False
    return device in ("cpu", "cuda")


@functools.cache
def _warn_once(problem: str) -> None:
    warnings.warn(f"deformable_detr runs {problem}", NativeOperatorMissing, stacklevel=4)


def _load() -> str | None:
    """Load the library and return None, or return the reason why it cannot be loaded."""
    # The library is not an extension module (it does not use Python), but it is searched for like one, so it
    # is also found in an editable installation, which stores it far from this file.
    spec = find_spec(f"{_PACKAGE}._native")
    if spec is None or spec.origin is None:
        return _build_problem()
    try:
        torch.ops.load_library(spec.origin)
    except OSError as error:  # built for another platform, or for a torch with symbols that this one lacks
        return f"{spec.origin} cannot be loaded by torch {torch.__version__}: {error.__cause__ or error}"
    return None


def _build_problem() -> str:
    """Return the reason why there is no library, from the record of CMakeLists.txt if that exists."""
    package = find_spec(_PACKAGE)
    folders = package.submodule_search_locations if package is not None else None
    for folder in folders or ():
        record = Path(folder) / "_native_build.json"
        if record.is_file():
            problem = json.loads(record.read_text())["problem"]
            return problem or f"it was built, according to {record}, but it is missing"
    return "it was never built: this is a source tree (`make setup` builds it)"


# ---- Schemas -------------------------------------------------------------------------------------
# They are identical to those of csrc/register.cpp. SymInt is needed because with int, torch.export would make
# the sizes of the example picture constants of the program.

SCHEMAS = {
    "ms_deform_attn": "(Tensor value, SymInt[] spatial_shapes, Tensor locations, Tensor weights, "
    "int[] points_per_level) -> Tensor",
    "ms_deform_attn_backward": "(Tensor grad_output, Tensor value, SymInt[] spatial_shapes, "
    "Tensor locations, Tensor weights, int[] points_per_level) -> (Tensor, Tensor, Tensor)",
    "fused_ms_deform_attn": "(Tensor value, SymInt[] spatial_shapes, Tensor reference, Tensor offsets, "
    "Tensor logits, int[] points_per_level) -> Tensor",
    "fused_ms_deform_attn_backward": "(Tensor grad_output, Tensor value, SymInt[] spatial_shapes, "
    "Tensor reference, Tensor offsets, Tensor logits, int[] points_per_level) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
}


def _define() -> None:
    for name, schema in SCHEMAS.items():
        torch.library.define(f"deformable_detr::{name}", schema)


# ---- GPUs ----------------------------------------------------------------------------------------
# These are plain kernels of the operators above, not `torch.library.triton_op`, which would define separate
# operators, so that the CPU and the GPU would no longer share schema, shapes, autograd and vmap. With
# `triton_op`, torch.compile could fuse other operations with the Triton kernels, but there are none to fuse:
# the kernels begin with a gather and end with a scatter.


def register_triton_kernels(device: str) -> None:
    """Register the operators' Triton kernels for "cuda" or, in tests with Triton's interpreter, for "cpu"."""
    for name in SCHEMAS:
        torch.library.impl(f"deformable_detr::{name}", device)(_triton_kernel(name))


def _triton_kernel(name: str) -> Callable[..., Any]:
    def kernel(*arguments: Any) -> Any:
        # Import this only for the first CUDA tensor: it takes a second, and some installations lack Triton.
        from . import triton_operators

        return getattr(triton_operators, name)(*arguments)

    return kernel


# ---- Shapes --------------------------------------------------------------------------------------


def _forward_fake(
    value: Tensor,
    spatial_shapes: Sequence[int],
    points: Tensor,
    weights: Tensor,
    points_per_level: Sequence[int],
) -> Tensor:
    B, Q, M = weights.shape[:3]
    return value.new_empty(B, Q, M * value.shape[3])


def _backward_fake(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[int],
    points: Tensor,
    weights: Tensor,
    points_per_level: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    return _dense_like(value), _dense_like(points), _dense_like(weights)


def _fused_forward_fake(
    value: Tensor,
    spatial_shapes: Sequence[int],
    reference: Tensor,
    offsets: Tensor,
    logits: Tensor,
    points_per_level: Sequence[int],
) -> Tensor:
    return _forward_fake(value, spatial_shapes, offsets, logits, points_per_level)


def _fused_backward_fake(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[int],
    reference: Tensor,
    offsets: Tensor,
    logits: Tensor,
    points_per_level: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _dense_like(value), _dense_like(reference), _dense_like(offsets), _dense_like(logits)


def _dense_like(tensor: Tensor) -> Tensor:
    return tensor.new_empty(tensor.shape)


# ---- Autograd ------------------------------------------------------------------------------------
# Only the inputs are saved; the backward kernels compute all intermediate results again. For one encoder call
# on a COCO image, the inputs take 46 MB, whereas grid_sample saves 600 MB.


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*(item for item in inputs if isinstance(item, Tensor)))
    ctx.spatial_shapes, ctx.points_per_level = inputs[1], inputs[-1]


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    value, points, weights = ctx.saved_tensors
    grad_value, grad_points, grad_weights = torch.ops.deformable_detr.ms_deform_attn_backward(
        grad_output, value, ctx.spatial_shapes, points, weights, ctx.points_per_level
    )
    return grad_value, None, grad_points, grad_weights, None


def _fused_backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    value, reference, offsets, logits = ctx.saved_tensors
    grads = torch.ops.deformable_detr.fused_ms_deform_attn_backward(
        grad_output, value, ctx.spatial_shapes, reference, offsets, logits, ctx.points_per_level
    )
    return grads[0], None, grads[1], grads[2], grads[3], None


def _refuse_second_derivative(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    raise NotImplementedError(
        "multi-scale deformable attention can be differentiated once, not twice "
        "(use ops.reference for second derivatives)"
    )


# ---- vmap ----------------------------------------------------------------------------------------
# The mapped dimension is merged into the batch.


def _vmap_over_batch(operator: Callable[..., Any]) -> Callable[..., Any]:
    def batched(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, Any]:
        size = info.batch_size

        def fold(tensor: Tensor, dim: int | None) -> Tensor:
            mapped = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            return mapped.reshape(size * mapped.shape[1], *mapped.shape[2:])

        outputs = operator(
            *(
                fold(item, dim) if isinstance(item, Tensor) else item
                for item, dim in zip(inputs, in_dims, strict=True)
            )
        )
        if isinstance(outputs, Tensor):
            return outputs.unflatten(0, (size, -1)), 0
        return tuple(output.unflatten(0, (size, -1)) for output in outputs), (0,) * len(outputs)

    return batched


def _register() -> None:
    operators = torch.ops.deformable_detr
    for name, fake, backward in (
        ("ms_deform_attn", _forward_fake, _backward),
        ("ms_deform_attn_backward", _backward_fake, _refuse_second_derivative),
        ("fused_ms_deform_attn", _fused_forward_fake, _fused_backward),
        ("fused_ms_deform_attn_backward", _fused_backward_fake, _refuse_second_derivative),
    ):
        qualified = f"deformable_detr::{name}"
        torch.library.register_fake(qualified, fake)
        if backward is _refuse_second_derivative:
            torch.library.register_autograd(qualified, backward)
        else:
            torch.library.register_autograd(qualified, backward, setup_context=_save_inputs)
        torch.library.register_vmap(qualified, _vmap_over_batch(getattr(operators, name)))
    register_flop_formulas()


_MISSING = _load()
_TRITON_MISSING = None if find_spec("triton") is not None else "Triton is not installed"
if _MISSING is not None:
    _define()
register_triton_kernels("cuda")
_register()

"""A process in which the operators run Triton's kernels on CPU tensors, through Triton's interpreter.

The process is separate, because the interpreter has to be chosen before the kernels are defined. It
simulates a machine with a GPU and no C++ compiler: the CPU library is hidden, so that schemas come from
Python.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor

BACKWARD = {
    "ms_deform_attn": "ms_deform_attn_backward",
    "fused_ms_deform_attn": "fused_ms_deform_attn_backward",
}


def interpreter() -> ProcessPoolExecutor:
    """Return the process. Use it as `interpreter().submit(FUNCTION, …)` with a function of this file."""
    return ProcessPoolExecutor(1, get_context("spawn"), _begin)


def _begin() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)
    find_spec = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *rest: (
        None if name == "deformable_detr.ops._native" else find_spec(name, *rest)
    )
    from deformable_detr import ops
    from deformable_detr.ops import native

    importlib.util.find_spec = find_spec
    assert not ops.native_available()
    native.register_triton_kernels("cpu")
    assert "deformable_detr.ops.triton_operators" not in sys.modules  # the first tensor brings it


def forward(name: str, arguments: Sequence[Any]) -> Tensor:
    return getattr(torch.ops.deformable_detr, name)(*arguments)


def forward_and_gradients(name: str, arguments: Sequence[Any], grad_output: Tensor) -> list[Tensor]:
    """Return the output of an operator and the gradients of all tensors, by autograd."""
    leaves = [each.requires_grad_() if isinstance(each, Tensor) else each for each in arguments]
    output = forward(name, leaves)
    tensors = [each for each in leaves if isinstance(each, Tensor)]
    return [output.detach(), *torch.autograd.grad(output, tensors, grad_output)]


def backward_in_mode(name: str, arguments: Sequence[Any], grad_output: Tensor, *, warn_only: bool) -> None:
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    try:
        forward(BACKWARD[name], (grad_output, *arguments))
    finally:
        torch.use_deterministic_algorithms(False)


def warnings_of_backward(name: str, arguments: Sequence[Any], grad_output: Tensor) -> list[str]:
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        backward_in_mode(name, arguments, grad_output, warn_only=True)
    return [str(each.message) for each in caught]


def check_operators(name: str, arguments: Sequence[Any], grad_output: Tensor) -> None:
    """Run opcheck's tests, and compile the operator with torch.compile without a graph break."""
    leaves = [each.requires_grad_() if isinstance(each, Tensor) else each for each in arguments]
    operators = torch.ops.deformable_detr
    torch.library.opcheck(getattr(operators, name).default, leaves)
    detached = [each.detach() if isinstance(each, Tensor) else each for each in arguments]
    torch.library.opcheck(getattr(operators, BACKWARD[name]).default, (grad_output, *detached))
    compiled = torch.compile(lambda *each: 2 * forward(name, each), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*detached), 2 * forward(name, detached))


def mapped(name: str, arguments: Sequence[Any]) -> Tensor:
    """Return the output of an operator under vmap over a new first dimension of all tensors."""
    dims = tuple(0 if isinstance(each, Tensor) else None for each in arguments)
    return torch.vmap(lambda *each: forward(name, each), in_dims=dims)(*arguments)


def schemas() -> dict[str, str]:
    from deformable_detr.ops.native import SCHEMAS

    return {name: str(getattr(torch.ops.deformable_detr, name).default._schema) for name in SCHEMAS}

"""models/relu6.py: the same outputs and gradients as PyTorch's ReLU6, from half of the memory."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from deformable_detr.models.relu6 import keep_only_results_of_relu6
from experiments.saved_memory import kept_bytes


def block(inplace: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU6(inplace), nn.Conv2d(8, 8, 3), nn.ReLU6(inplace), nn.Conv2d(8, 2, 1)
    )


def run(module: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor], int]:
    """Return the output, all gradients, and the number of bytes kept for the backward pass."""
    size = kept_bytes(lambda: module(x))
    output = module(x)
    gradients = torch.autograd.grad(output.square().sum(), [*module.parameters(), x])
    return output, list(gradients), size


def test_nothing_changes_but_the_memory() -> None:
    plain, lean = block(), block()
    keep_only_results_of_relu6(lean)
    x = (10 * torch.randn(2, 3, 16, 16)).requires_grad_()
    output, gradients, size = run(plain, x)
    lean_output, lean_gradients, lean_size = run(lean, x)
    assert torch.equal(lean_output, output)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(lean_gradients, gradients, strict=True))
    between = 2 * 8 * 4 * (16 * 16 + 14 * 14)  # the inputs of the two ReLU6
    assert size - lean_size == between


@pytest.mark.parametrize("value", [-1.0, 0.0, 3.0, 6.0, 7.0, float("nan"), float("inf")])
def test_at_the_corners(value: float) -> None:
    x = torch.full((3,), value, requires_grad=True)
    lean = nn.Sequential(nn.Identity(), nn.ReLU6(inplace=True))
    keep_only_results_of_relu6(lean)
    mine, theirs = (torch.autograd.grad(module(x * 1).sum(), x)[0] for module in (lean, nn.ReLU6()))
    assert torch.equal(mine, theirs)


def test_without_gradients_and_in_a_copy() -> None:
    lean = copy.deepcopy(block())
    keep_only_results_of_relu6(lean)
    x = torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        assert torch.equal(copy.deepcopy(lean)(x), block()(x))


def test_a_module_that_keeps_its_input_is_left_alone() -> None:
    plain = block(inplace=False)
    keep_only_results_of_relu6(plain)
    x = torch.randn(2, 3, 8, 8)
    hidden = plain[0](x)
    before = hidden.clone()
    plain[1](hidden)
    assert torch.equal(hidden, before)

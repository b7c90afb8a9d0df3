"""models/dropout.py: the rule of dropout, and that the fused form has the gradients of the two parts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from deformable_detr.models.dropout import Dropout, relu_dropout_
from deformable_detr.models.feedforward import FeedForward


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_share_of_zeros_and_mean(p: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(1000, 257)
    y = Dropout(p)(x)
    dropped = (y == 0).double().mean().item()
    deviation = math.sqrt(p * (1 - p) / x.numel())
    assert abs(dropped - p) < 5 * deviation
    assert torch.unique(y).numel() == 2
    assert y.max().item() == pytest.approx(1 / (1 - p), rel=1e-4)
    assert abs(y.double().mean().item() - 1) < 5 * deviation / (1 - p)


def test_neighbours_are_independent() -> None:
    # Four values share one draw of the generator: their bits must have nothing in common.
    torch.manual_seed(0)
    kept = (Dropout(0.3)(torch.ones(100_000, 4)) != 0).double()
    assert torch.corrcoef(kept.T).fill_diagonal_(0).abs().max() < 0.02
    assert (kept.mean(0) - 0.7).abs().max() < 0.01


def test_a_function_of_the_seed() -> None:
    x = torch.randn(3, 5, 7)
    torch.manual_seed(3)
    first, other = Dropout(0.5)(x), Dropout(0.5)(x)
    torch.manual_seed(3)
    again = Dropout(0.5)(x)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("shape", [(0, 4), (1,), (2, 3, 5)])
def test_any_size(shape: tuple[int, ...]) -> None:
    assert Dropout(0.5)(torch.ones(shape)).shape == shape


def test_evaluation_and_p_zero_change_nothing() -> None:
    x = torch.randn(8, 8)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_relu_dropout_is_both(p: float, dtype: torch.dtype) -> None:
    x = torch.randn(40, 30, dtype=dtype)
    outputs, gradients = [], []
    for fused in (True, False):
        torch.manual_seed(1)
        leaf = x.clone().requires_grad_()
        y = relu_dropout_(leaf * 1, p) if fused else Dropout(p)(leaf.relu())
        y.backward(torch.linspace(-1, 1, 30, dtype=dtype).expand_as(y))
        outputs.append(y.detach())
        gradients.append(leaf.grad)
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*gradients)


def test_feedforward_in_plain_pytorch() -> None:
    layer = FeedForward(16, 48, 0.0).train()
    x = torch.randn(2, 5, 16, requires_grad=True)
    wanted = nn.functional.layer_norm(
        x + layer.linear2(torch.relu(layer.linear1(x))), (16,), layer.norm.weight, layer.norm.bias
    )
    torch.testing.assert_close(layer(x), wanted)


def test_feedforward_keeps_its_hidden_values_once() -> None:
    layer, kept = FeedForward(8, 64, 0.1).train(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(torch.randn(3, 10, 8, requires_grad=True))
    hidden = {t.data_ptr() for t in kept if t.numel() == 3 * 10 * 64}
    assert len(hidden) == 1

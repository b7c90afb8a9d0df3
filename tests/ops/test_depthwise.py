"""Depthwise convolution and its gradients against PyTorch's, with each set of kernels for this CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck

from deformable_detr import ops
from deformable_detr.ops.depthwise import depthwise_conv
from deformable_detr.ops.native import cpu_kernels

pytestmark = pytest.mark.skipif(not ops.native_available(), reason=ops.kernels()["cpu"])

# (height, width), kernel, stride, zeros above, left, below and right
GEOMETRIES = [
    ((7, 13), (5, 5), 1, (2, 2, 2, 2)),
    ((8, 6), (3, 3), 2, (0, 1, 1, 0)),
    ((5, 11), (5, 5), 2, (1, 2, 2, 2)),
    ((9, 4), (7, 2), 3, (4, 1, 3, 0)),
    ((2, 3), (5, 5), 1, (2, 2, 2, 2)),  # a kernel that is larger than the map
    ((6, 8), (1, 1), 1, (0, 0, 0, 0)),
]


@pytest.fixture(params=cpu_kernels()[1:] if ops.native_available() else ("none",))
def kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    before = cpu_kernels()[0]
    torch.ops.deformable_detr.choose_cpu_kernels(request.param)
    yield
    torch.ops.deformable_detr.choose_cpu_kernels(before)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("size", "kernel", "stride", "padding"), GEOMETRIES)
@pytest.mark.parametrize("channels", [1, 3, 8, 13, 34, 70])  # whole blocks, and what is left over from them
def test_output_and_gradients_are_those_of_pytorch(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: int,
    padding: tuple[int, int, int, int],
    channels: int,
) -> None:
    torch.manual_seed(0)
    top, left, bottom, right = padding
    x = torch.randn(2, channels, *size, dtype=torch.double).requires_grad_()
    weight = torch.randn(channels, 1, *kernel, dtype=torch.double).requires_grad_()
    bias = torch.randn(channels, dtype=torch.double)
    expected = F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, stride, groups=channels)
    found = depthwise_conv(x, weight, bias, stride, (top, left), (expected.shape[2], expected.shape[3]))
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last)
    grad = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(found, (x, weight), grad),
        torch.autograd.grad(expected, (x, weight), grad),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_are_the_derivatives(stride: int) -> None:
    x = torch.randn(1, 3, 4, 5, dtype=torch.double, requires_grad=True)
    weight = torch.randn(3, 1, 3, 3, dtype=torch.double, requires_grad=True)
    bias = torch.zeros(3, dtype=torch.double)
    size = (-(-4 // stride), -(-5 // stride))
    assert gradcheck(lambda x, weight: depthwise_conv(x, weight, bias, stride, (1, 1), size), (x, weight))


def test_the_output_may_be_changed_in_place() -> None:
    x = torch.randn(1, 8, 4, 4, requires_grad=True)
    weight = torch.randn(8, 1, 3, 3, requires_grad=True)
    output = depthwise_conv(x, weight, torch.zeros(8), 1, (1, 1), (4, 4))
    F.hardtanh(output, 0, 6, inplace=True).sum().backward()
    expected = F.hardtanh(F.conv2d(x, weight, padding=1, groups=8), 0, 6).sum()
    torch.testing.assert_close(x.grad, torch.autograd.grad(expected, x)[0])


def test_the_result_does_not_depend_on_the_number_of_threads() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 40, 11, 9, requires_grad=True)
    weight = torch.randn(40, 1, 5, 5, requires_grad=True)
    before, results = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        output = depthwise_conv(x, weight, torch.zeros(40), 1, (2, 2), (11, 9))
        results.append((output, *torch.autograd.grad(output.square().sum(), (x, weight))))
    torch.set_num_threads(before)
    for one, three in zip(*results, strict=True):
        assert torch.equal(one, three)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"weight": torch.zeros(3, 3, 5)}, "weight"), ({"bias": torch.zeros(4).double()}, "bias")],
)
def test_the_operator_refuses_what_does_not_fit(change: dict[str, Tensor], named: str) -> None:
    inputs = {"input": torch.zeros(1, 4, 4, 4), "weight": torch.zeros(3, 3, 4), "bias": torch.zeros(4)}
    with pytest.raises(RuntimeError, match=named):
        torch.ops.deformable_detr.depthwise_conv(*(inputs | change).values(), 1, 1, 1, 4, 4)

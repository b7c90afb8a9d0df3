"""Nearest-neighbour resizing: equal to PyTorch's for every size, gradients included."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from deformable_detr.models.nearest import resize_nearest


@pytest.mark.parametrize("stride", [4, 8, 16, 32, 64])
def test_every_size_of_a_level_takes_pytorchs_rows(stride: int) -> None:
    for size in range(1, 1400):
        rows = torch.arange(size, dtype=torch.float32).view(1, 1, size, 1)
        shape = (math.ceil(size / stride), 1)
        assert torch.equal(resize_nearest(rows, shape), F.interpolate(rows, size=shape)), size


@pytest.mark.parametrize("shape", [(3, 5), (7, 9), (10, 14), (13, 11), (14, 20)])
def test_maps_and_their_gradients(shape: tuple[int, int]) -> None:
    maps = torch.randn(2, 3, 7, 10, dtype=torch.float64)
    ours, theirs = maps.clone().requires_grad_(), maps.clone().requires_grad_()
    weights = torch.randn(2, 3, *shape, dtype=torch.float64)
    for resized, given in ((resize_nearest(ours, shape), ours), (F.interpolate(theirs, size=shape), theirs)):
        (resized * weights).sum().backward()
        assert resized.shape == (2, 3, *shape)
        assert given.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert torch.equal(resize_nearest(maps, shape), F.interpolate(maps, size=shape))


def test_masks_stay_masks() -> None:
    mask = torch.zeros(1, 135, 160, dtype=torch.bool)
    mask[:, 120:] = True
    resized = resize_nearest(mask, (9, 10))
    assert resized.dtype == torch.bool
    assert resized[0, :, 0].tolist() == [False] * 8 + [True]

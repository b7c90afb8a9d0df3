"""The pyramids of Table 2: FPN against torchvision's, BiFPN against its formula, written out."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from deformable_detr.models.neck import FPN, BiFPN, BiFPNLayer

CHANNELS, DIM = (5, 6, 7), 32


def maps() -> list[Tensor]:
    """Three maps of odd sizes, each half of the one before, rounded up."""
    torch.manual_seed(0)
    sizes = ((11, 13), (6, 7), (3, 4))
    return [torch.randn(2, channels, *size) for channels, size in zip(CHANNELS, sizes, strict=True)]


def test_fpn_is_torchvisions() -> None:
    neck = FPN(CHANNELS, DIM, num_levels=3)
    theirs = FeaturePyramidNetwork(list(CHANNELS), DIM, norm_layer=partial(nn.GroupNorm, 32))
    # Theirs have no bias before a norm; ours start at zero.
    for blocks, ours in ((theirs.inner_blocks, neck.mapper.levels), (theirs.layer_blocks, neck.outputs)):
        for block, level in zip(blocks, ours, strict=True):
            block[0].weight = level[0].weight
    expected = theirs(OrderedDict((str(index), each) for index, each in enumerate(maps())))
    for found, wanted in zip(neck(maps()), expected.values(), strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("neck", [FPN, BiFPN])
@pytest.mark.parametrize("num_levels", [1, 3, 4, 5])
def test_a_pyramid_changes_no_size(neck: type[FPN] | type[BiFPN], num_levels: int) -> None:
    few = maps()[-min(num_levels, 3) :]
    pyramid = neck([each.shape[1] for each in few], DIM, num_levels)
    levels = pyramid(few)
    assert [tuple(level.shape) for level in levels] == [tuple(level.shape) for level in pyramid.mapper(few)]
    sum(level.square().sum() for level in levels).backward()
    unused = [name for name, p in pyramid.named_parameters() if p.grad is None]
    assert not unused


def test_bifpn_layer_by_its_formula() -> None:
    torch.manual_seed(1)
    layer = BiFPNLayer(DIM, num_levels=3)
    for fusion in (*layer.down, *layer.up):
        nn.init.uniform_(fusion.weights, 0.2, 2.0)  # type: ignore[arg-type]
    p3, p4, p5 = (torch.randn(1, DIM, *size) for size in ((8, 12), (4, 6), (2, 3)))

    def fused(fusion: nn.Module, *inputs: Tensor) -> Tensor:
        w = fusion.weights  # type: ignore[assignment]
        mean = sum(w[i] * each for i, each in enumerate(inputs)) / (w.sum() + 1e-4)  # type: ignore[index]
        return fusion.convolution(mean)  # type: ignore[operator, no-any-return]

    def twice(level: Tensor) -> Tensor:
        return level.repeat_interleave(2, 2).repeat_interleave(2, 3)

    def half(level: Tensor) -> Tensor:
        return F.max_pool2d(level, 3, 2, 1)

    down4 = fused(layer.down[1], p4, twice(p5))
    out3 = fused(layer.down[0], p3, twice(down4))
    out4 = fused(layer.up[0], p4, down4, half(out3))
    out5 = fused(layer.up[1], p5, half(out4))
    for found, expected in zip(layer([p3, p4, p5]), (out3, out4, out5), strict=True):
        torch.testing.assert_close(found, expected)


def test_a_negative_weight_counts_nothing() -> None:
    layer = BiFPNLayer(DIM, num_levels=2)
    with torch.no_grad():
        layer.down[0].weights[1] = -3.0  # type: ignore[index]
    fine, coarse = torch.randn(1, DIM, 4, 4), torch.randn(1, DIM, 2, 2)
    torch.testing.assert_close(layer([fine, coarse])[0], layer([fine, coarse + 1])[0])

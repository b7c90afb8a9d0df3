"""The memory format of convolutions; the folding of norms is tested with the replicas that use it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deformable_detr.inference.convolutions import fastest_layout, has_depthwise, in_layout

DEPTHWISE = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8))
OTHER = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3, groups=4), nn.Linear(8, 8))


def test_depthwise_means_one_input_channel_for_each_output_channel() -> None:
    assert has_depthwise(DEPTHWISE)
    assert not has_depthwise(OTHER)


@pytest.mark.parametrize(
    ("module", "device", "layout"),
    [
        (DEPTHWISE, "cpu", torch.channels_last),
        (DEPTHWISE, "cuda", torch.contiguous_format),  # cuDNN prepares them for every new size of picture
        (OTHER, "cpu", torch.channels_last),
        (OTHER, "cuda", torch.channels_last),
    ],
)
def test_layout(module: nn.Module, device: str, layout: torch.memory_format) -> None:
    assert fastest_layout(module, torch.device(device)) == layout


def test_only_weights_of_convolutions_are_converted() -> None:
    module = in_layout(nn.Sequential(nn.Conv2d(4, 8, 3), nn.Linear(8, 8)), torch.channels_last)
    assert module[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert module[1].weight.is_contiguous()

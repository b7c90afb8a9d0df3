"""The memory format of convolutions, and which norms are folded; the replicas have more tests."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from deformable_detr.inference.convolutions import fastest_layout, fold_norms, has_depthwise, in_layout
from deformable_detr.models.resnet import FrozenBatchNorm2d

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


class Standardised(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        weight = (self.weight - self.weight.mean()) / self.weight.std()
        output: Tensor = self._conv_forward(input, weight, self.bias)
        return output


@torch.no_grad()
def test_a_convolution_of_another_class_keeps_its_norm() -> None:
    """Its output need not be proportional to its weight, so a scaled weight could compute something else."""
    torch.manual_seed(0)
    norm = FrozenBatchNorm2d(4)
    norm.weight.uniform_(0.5, 2)
    backbone, pixels = nn.Sequential(Standardised(3, 4, 3), norm), torch.randn(1, 3, 8, 8)
    expected = backbone(pixels)
    fold_norms(backbone)
    torch.testing.assert_close(backbone(pixels), expected)

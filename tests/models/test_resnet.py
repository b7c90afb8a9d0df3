"""models/resnet.py: torchvision's layers, weights and results."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from deformable_detr.config import TORCHVISION_RESNETS, BackboneConfig
from deformable_detr.models.backbone import build_backbone, resnet_key
from deformable_detr.models.resnet import ARCHITECTURES


def test_all_resnets_can_be_chosen() -> None:
    assert tuple(ARCHITECTURES) == TORCHVISION_RESNETS


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("dilation", [False, True])
def test_resnets_have_the_layers_of_torchvision(name: str, dilation: bool) -> None:
    """The same tensors of the same shapes, in the same order, and the same kernels, strides and dilations."""
    if dilation and name in ("resnet18", "resnet34"):
        pytest.skip("basic blocks cannot be dilated")
    with torch.device("meta"):
        ours = build_backbone(BackboneConfig(name, dilation=dilation), num_maps=4)
        theirs = by_torchvision(name, dilation)
    expected = {resnet_key(key): value.shape for key, value in theirs.state_dict().items()}
    expected = {key: shape for key, shape in expected.items() if not key.startswith("fc.")}
    assert {key: value.shape for key, value in ours.state_dict().items()} == expected
    assert list(ours.state_dict()) == list(expected)

    assert convolutions(ours) == convolutions(theirs)


@pytest.mark.parametrize(("name", "dilation"), [("resnet18", False), ("resnet50", False), ("resnet50", True)])
def test_resnets_compute_what_torchvisions_do(name: str, dilation: bool) -> None:
    """The same seed gives the same weights, the same next random number, and the same maps, to the bit."""
    torch.manual_seed(7)
    ours = build_backbone(BackboneConfig(name, dilation=dilation), num_maps=4)
    drawn_next = torch.rand(4)
    torch.manual_seed(7)
    theirs = by_torchvision(name, dilation)
    assert torch.equal(torch.rand(4), drawn_next)
    torch.manual_seed(8)
    for norm, other in zip(norms(ours), norms(theirs), strict=True):
        for value, copy in zip(norm.buffers(), other.buffers(), strict=True):
            copy.copy_(value.uniform_(0.5, 1.5))

    pixels = torch.randn(2, 3, 75, 101)
    features = nn.Sequential(theirs.conv1, theirs.bn1, theirs.relu, theirs.maxpool)(pixels)
    for stage, found in zip(range(1, 5), ours(pixels), strict=True):
        features = getattr(theirs, f"layer{stage}")(features)
        assert torch.equal(found, features)


def by_torchvision(name: str, dilation: bool) -> Any:
    options = {"replace_stride_with_dilation": [False, False, True]} if dilation else {}
    return torchvision.models.get_model(name, weights=None, norm_layer=FrozenBatchNorm2d, **options)


def convolutions(network: nn.Module) -> list[str]:
    return [str(module) for module in network.modules() if isinstance(module, nn.Conv2d)]


def norms(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if type(module).__name__ == "FrozenBatchNorm2d"]

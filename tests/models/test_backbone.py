"""Deformable stages of ResNets, and the ResNeXts: what they hold, compute, load and refuse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from deformable_detr.checkpoint.contents import empty_model, load_state
from deformable_detr.checkpoint.families import family_of
from deformable_detr.config import (
    BackboneConfig,
    ModelConfig,
    TrainConfig,
    from_dict,
    to_dict,
)
from deformable_detr.errors import UserError
from deformable_detr.models import build_model
from deformable_detr.models.backbone import Backbone, build_backbone
from deformable_detr.models.resnet import FrozenBatchNorm2d
from deformable_detr.ops import DeformConv2d
from deformable_detr.training.optimisation import parameter_groups


def deformable_layers(backbone: nn.Module) -> dict[str, DeformConv2d]:
    return {name: layer for name, layer in backbone.named_modules() if isinstance(layer, DeformConv2d)}


def twins(name: str, stages: tuple[int, ...], **changes: Any) -> tuple[Backbone, Backbone]:
    """A plain backbone and a deformable one, of the same random numbers."""
    backbones = []
    for deformable_stages in ((), stages):
        torch.manual_seed(0)
        config = BackboneConfig(name, deformable_stages=deformable_stages, **changes)
        backbones.append(build_backbone(config, num_maps=3))
    return backbones[0], backbones[1]


def move_offsets(backbone: nn.Module) -> None:
    """As if it had learned: offsets of some pixels."""
    for layer in deformable_layers(backbone).values():
        nn.init.normal_(layer.sampling_offsets.bias, std=2.0)


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def is_plain(key: str) -> bool:
    return "sampling_offsets" not in key and "modulation" not in key


@pytest.mark.parametrize(
    ("name", "stages", "changes", "count"),
    [
        ("resnet18", (3, 4, 5), {}, 12),  # two 3x3 convolutions in each basic block
        ("resnet50", (3, 4, 5), {}, 13),
        ("resnet50", (5,), {"dilation": True}, 3),
        ("resnet18", (2,), {}, 4),
    ],
)
def test_deformable_stages_start_as_the_plain_backbone(
    name: str, stages: tuple[int, ...], changes: dict[str, Any], count: int
) -> None:
    """Same kernels under the same names, so the same maps, up to the order of additions."""
    plain, deformable = twins(name, stages, **changes)
    layers = deformable_layers(deformable)
    assert len(layers) == count
    assert {int(layer.split(".")[1]) + 2 for layer in layers} == set(stages)
    assert all(layer.kernel_size == (3, 3) and layer.modulation is not None for layer in layers.values())
    state = deformable.state_dict()
    assert [key for key in state if is_plain(key)] == list(plain.state_dict())
    assert all(torch.equal(value, state[key]) for key, value in plain.state_dict().items())
    pixels = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        before = plain(pixels)
        for ours, theirs in zip(deformable(pixels), before, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max().item())
        move_offsets(deformable)
        assert (deformable(pixels)[-1] - before[-1]).abs().max() > 1e-3 * before[-1].abs().max()


def test_trained_weights_load_with_and_without_offsets(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = torchvision.models.resnet18(weights=None).eval()
    torch.save(source.state_dict(), tmp_path / "plain.pth")
    _, backbone = twins("resnet18", (4, 5))
    backbone.load_pretrained(str(tmp_path / "plain.pth"))
    pixels = torch.randn(1, 3, 64, 64)
    features = nn.Sequential(*list(source.children())[:-2])(pixels)
    torch.testing.assert_close(backbone(pixels)[-1], features, rtol=1e-4, atol=1e-4)

    move_offsets(backbone)
    torch.save(backbone.state_dict(), tmp_path / "deformable.pth")
    _, again = twins("resnet18", (4, 5))
    again.load_pretrained(str(tmp_path / "deformable.pth"))
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in backbone.state_dict().items())
    # Offsets may be missing; a kernel may not.
    state = {key: value for key, value in source.state_dict().items() if key != "layer4.1.conv2.weight"}
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(UserError, match=r"1 of \d+ tensors are missing .* stages.3.1.conv2.weight"):
        backbone.load_pretrained(str(tmp_path / "part.pth"))


@pytest.mark.parametrize("trainable_layers", [0, 2, 5])
def test_freezing_counts_offsets_to_their_stage(trainable_layers: int) -> None:
    _, backbone = twins("resnet18", (3, 4, 5), trainable_layers=trainable_layers)
    expected = {f"stages.{stage}" for stage in range(4)}
    expected = set(sorted(expected)[4 - min(trainable_layers, 4) :])
    learning = {name[:8] for name, value in backbone.named_parameters() if value.requires_grad}
    assert learning - {"stem.0.w"} == expected
    assert ("stem.0.w" in learning) == (trainable_layers == 5)
    if trainable_layers:
        backbone(torch.randn(1, 3, 64, 64))[-1].square().mean().backward()
        assert backbone.stages[3][0].conv2.sampling_offsets.weight.grad.any()
        assert backbone.stages[3][0].conv2.modulation.weight.grad.any()
    # Batch norm stays frozen.
    state = {key: value.clone() for key, value in backbone.state_dict().items()}
    backbone.train()(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(value, backbone.state_dict()[key]) for key, value in state.items())


def test_offsets_are_dilated_with_their_kernels() -> None:
    with torch.device("meta"):
        config = BackboneConfig("resnet50", dilation=True, deformable_stages=(5,))
        backbone = build_backbone(config, num_maps=1)
    layers = [block.conv2 for block in backbone.stages[3]]
    assert [layer.dilation for layer in layers] == [(1, 1), (2, 2), (2, 2)]
    assert [layer.sampling_offsets.dilation for layer in layers] == [(1, 1), (2, 2), (2, 2)]
    assert backbone(torch.empty(1, 3, 64, 64, device="meta"))[0].shape[-2:] == (4, 4)


def test_channels_last_and_autocast_as_in_training() -> None:
    _, backbone = twins("resnet18", (4, 5))
    move_offsets(backbone)
    pixels = torch.randn(1, 3, 64, 64)
    expected = backbone(pixels)[-1].detach()
    backbone.to(memory_format=torch.channels_last)
    torch.testing.assert_close(backbone(pixels)[-1], expected, rtol=1e-3, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        output = backbone(pixels)[-1]
    assert (output.float() - expected).abs().mean() < 0.05 * expected.abs().mean()
    output.float().sum().backward()


@pytest.mark.parametrize(("name", "groups"), [("resnext101_32x8d", 32), ("resnext101_64x4d", 64)])
def test_resnext_101_with_deformable_stages(name: str, groups: int) -> None:
    """Table 3's "ResNeXt-101 + DCN": 30 grouped 3x3 convolutions, on torchvision's numbers of parameters."""
    with torch.device("meta"):
        plain = build_backbone(BackboneConfig(name), num_maps=3)
        deformable = build_backbone(BackboneConfig(name, deformable_stages=(3, 4, 5)), num_maps=3)
    own = size(plain)
    published = torchvision.models.get_model_weights(name).IMAGENET1K_V1.meta["num_params"]
    # Frozen numbers are no parameters, and there is no classifier.
    norms = [module for module in plain.modules() if isinstance(module, FrozenBatchNorm2d)]
    frozen = sum(2 * norm.weight.numel() for norm in norms)
    assert own == published - frozen - (2048 + 1) * 1000
    layers = deformable_layers(deformable).values()
    assert len(layers) == 4 + 23 + 3
    assert {layer.groups for layer in layers} == {groups}
    assert [key for key in deformable.state_dict() if is_plain(key)] == list(plain.state_dict())
    # 18 offsets and 9 modulations, each from 3x3 pixels of all the inner channels of a block.
    assert size(deformable) - own == sum(27 * (9 * layer.in_channels + 1) for layer in layers)
    maps = deformable(torch.empty(1, 3, 64, 96, device="meta"))
    assert [tuple(m.shape[1:]) for m in maps] == [(512, 8, 12), (1024, 4, 6), (2048, 2, 3)]


def test_a_detector_learns_with_it_and_the_backbones_rate_holds_for_offsets() -> None:
    config = ModelConfig(
        num_classes=3,
        backbone=BackboneConfig("resnet18", deformable_stages=(5,)),
        num_queries=5,
        hidden_dim=32,
        num_heads=4,
        encoder_layers=1,
        decoder_layers=1,
        ffn_dim=32,
    )
    assert from_dict(ModelConfig, to_dict(config)) == config
    torch.manual_seed(0)
    model = build_model(config)
    model([torch.randn(3, 64, 64)]).predictions[-1].logits.square().mean().backward()
    groups = {group["name"]: group for group in parameter_groups(model, TrainConfig())}
    backbone_ids = {id(parameter) for parameter in groups["backbone"]["params"]}
    layers = deformable_layers(model)
    assert len(layers) == 4
    for layer in layers.values():
        for parameter in layer.parameters():
            assert id(parameter) in backbone_ids
            assert parameter.grad is not None
    assert groups["backbone"]["lr"] == groups["sampling"]["lr"]  # the paper's rates make no difference


def test_a_checkpoint_keeps_learned_offsets() -> None:
    backbone = BackboneConfig("resnet18", deformable_stages=(5,))
    config = replace(ModelConfig(), backbone=backbone, hidden_dim=32, encoder_layers=1, decoder_layers=1)
    model = build_model(config).eval()
    move_offsets(model)
    again = empty_model(config)
    load_state(again, model.state_dict())
    image = torch.randn(3, 64, 64)
    with torch.no_grad():
        before, after = (each([image]).predictions[-1].logits for each in (model, again))
    assert torch.equal(before, after)


def test_what_cannot_work_is_refused() -> None:
    refusals: list[tuple[dict[str, Any], str]] = [
        (
            {"name": "tf_efficientnet_lite0", "deformable_stages": (3,)},
            "deformable_stages works for .*, not for",
        ),
        ({"deformable_stages": (1, 2)}, r"model\.backbone\.deformable_stages .* from 2 to 5, not \[1, 2\]"),
        ({"deformable_stages": (6,)}, "from 2 to 5"),
        ({"deformable_stages": (3, 3)}, "a stage twice"),
        ({"deformable_stages": 5}, "model.backbone.deformable_stages must be a list of whole numbers, not 5"),
    ]
    for fields, words in refusals:
        with pytest.raises(UserError, match=words):
            BackboneConfig(**fields)
    config = ModelConfig()
    config = replace(config, backbone=replace(config.backbone, deformable_stages=(3, 4, 5)))
    with pytest.raises(UserError, match=r"model.backbone.deformable_stages=\[3, 4, 5\] cannot be written"):
        family_of(config, "the authors' code")

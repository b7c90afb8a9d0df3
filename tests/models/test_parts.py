"""Each part of the models against its definition, written out plainly."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from deformable_detr.config import BackboneConfig, ModelConfig
from deformable_detr.errors import UserError
from deformable_detr.models import build_model
from deformable_detr.models.attention import DeformableAttention
from deformable_detr.models.backbone import build_backbone
from deformable_detr.models.encoder import token_centres
from deformable_detr.models.heads import logits_of_references
from deformable_detr.models.model import valid_ratio
from deformable_detr.models.neck import ChannelMapper
from deformable_detr.models.position import SinePosition
from deformable_detr.models.queries import base_boxes
from deformable_detr.structures import FeatureMemory, ImageBatch

SMALL = ModelConfig(
    num_classes=3,
    backbone=BackboneConfig("resnet18"),
    num_queries=7,
    hidden_dim=32,
    num_heads=4,
    num_levels=3,
    encoder_layers=1,
    decoder_layers=2,
    ffn_dim=48,
    dropout=0.0,
)


def padded_memory(dim: int = 32) -> FeatureMemory:
    """Two images, the second padded, on two levels."""
    torch.manual_seed(0)
    masks = [torch.zeros(2, 4, 6, dtype=torch.bool), torch.zeros(2, 2, 3, dtype=torch.bool)]
    masks[0][1, 3:], masks[0][1, :, 4:] = True, True
    masks[1][1, :, 2:] = True
    return FeatureMemory(
        tokens=torch.randn(2, 30, dim),
        positions=torch.randn(2, 30, dim),
        mask=torch.cat([mask.flatten(1) for mask in masks], dim=1),
        spatial_shapes=((4, 6), (2, 3)),
        valid_ratios=torch.stack([valid_ratio(mask) for mask in masks], dim=1),
    )


@pytest.mark.parametrize("half_pixel", [False, True])
def test_sine_position_by_the_formula(half_pixel: bool) -> None:
    mask = torch.zeros(1, 3, 5, dtype=torch.bool)
    mask[:, :, 4:] = True
    (encoded,) = SinePosition(16, half_pixel)([mask])
    assert encoded.shape == (1, 16, 3, 5)
    shift = 0.5 if half_pixel else 0.0
    for row, column in [(0, 0), (1, 2), (2, 3)]:
        for axis, (place, last) in enumerate([(row + 1, 3), (column + 1, 4)]):
            angle = (place - shift) / (last + 1e-6) * 2 * math.pi
            for i in range(8):
                wave = math.sin if i % 2 == 0 else math.cos
                expected = wave(angle / 10000 ** (2 * (i // 2) / 8))
                assert encoded[0, axis * 8 + i, row, column].item() == pytest.approx(expected, abs=1e-5)


def test_valid_ratio_is_width_then_height() -> None:
    mask = torch.ones(1, 4, 10, dtype=torch.bool)
    mask[:, :3, :5] = False
    assert valid_ratio(mask).tolist() == [[0.5, 0.75]]


def test_token_centres_are_relative_to_the_unpadded_image() -> None:
    memory = padded_memory()
    centres = token_centres(memory)
    assert centres.shape == (2, 30, 2)
    torch.testing.assert_close(centres[0, 0], torch.tensor([0.5 / 6, 0.5 / 4]))
    # The second image fills 4 of 6 columns and 3 of 4 rows of level 0: row 1, column 2.
    torch.testing.assert_close(centres[1, 6 + 2], torch.tensor([2.5 / 4, 1.5 / 3]))
    assert centres[1, 6 * 3 + 5].min() > 1  # a token in the padding lies beyond the image


def test_base_boxes_double_per_level_and_the_border_is_invalid() -> None:
    boxes, invalid = base_boxes(padded_memory())
    torch.testing.assert_close(boxes[0, 7], torch.tensor([1.5 / 6, 1.5 / 4, 0.05, 0.05]))
    torch.testing.assert_close(boxes[1, 24], torch.tensor([0.5 / 2, 0.5 / 2, 0.1, 0.1]))
    assert torch.equal(invalid, padded_memory().mask | ((boxes <= 0.01) | (boxes >= 0.99)).any(-1))
    assert not invalid[0].any()


def test_initial_sampling_points_look_into_eight_directions() -> None:
    attention = DeformableAttention(dim=64, num_heads=8, num_levels=2, num_points=3)
    offsets = attention.sampling_offsets.bias.detach().view(8, 2, 3, 2)
    directions = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    for head, direction in enumerate(directions):
        for point in range(3):
            expected = torch.tensor(direction) * (point + 1.0)
            torch.testing.assert_close(offsets[head, 0, point], expected, atol=1e-5, rtol=0)
            torch.testing.assert_close(offsets[head, 1, point], expected, atol=1e-5, rtol=0)
    assert attention.attention_weights.weight.abs().sum() == 0


def test_padding_does_not_reach_deformable_attention() -> None:
    torch.manual_seed(0)
    attention = DeformableAttention(dim=32, num_heads=4, num_levels=2, num_points=2)
    torch.nn.init.normal_(attention.value_projection.bias)
    memory = padded_memory()
    queries, positions, references = torch.randn(2, 5, 32), torch.randn(2, 5, 32), torch.rand(2, 5, 4)
    before = attention(queries, positions, references, memory)
    noisy = memory.tokens + 100 * memory.mask[..., None]
    torch.testing.assert_close(attention(queries, positions, references, memory.with_tokens(noisy)), before)


def test_a_reference_point_leaves_the_size_to_the_head() -> None:
    logits = logits_of_references(torch.tensor([[[0.5, 0.8]]]))
    assert logits[0, 0, [0, 2, 3]].tolist() == [0, 0, 0]
    assert logits_of_references(torch.full((1, 1, 4), 0.5)).abs().max() == 0


@pytest.mark.parametrize("num_levels", [1, 2, 3, 4, 5])
def test_any_number_of_levels(num_levels: int) -> None:
    model = build_model(replace(SMALL, num_levels=num_levels)).eval()
    output = model([torch.randn(3, 64, 96), torch.randn(3, 80, 64)])
    assert output.predictions[-1].logits.shape == (2, 7, 3)
    assert ((output.predictions[-1].boxes_cxcywh > 0) & (output.predictions[-1].boxes_cxcywh < 1)).all()


@pytest.mark.parametrize(("dim", "heads"), [(24, 3), (20, 5), (40, 1)])
def test_any_width_that_the_heads_divide(dim: int, heads: int) -> None:
    config = replace(SMALL, hidden_dim=dim, num_heads=heads, refine_references=True, queries="proposals")
    output = build_model(config).eval()([torch.randn(3, 64, 96)])
    assert output.predictions[-1].logits.shape == (1, 7, 3)
    assert output.proposals is not None


def test_fewer_tokens_than_queries_gives_as_many_queries_as_tokens() -> None:
    config = replace(SMALL, num_queries=500, refine_references=True, queries="proposals")
    output = build_model(config).eval()([torch.randn(3, 32, 32)])
    assert output.predictions[-1].logits.shape[1] == 4 * 4 + 2 * 2 + 1


def test_masked_proposals_stay_out_of_the_padding() -> None:
    """The authors' choice lets padded tokens in; the named field keeps them out."""
    images = ImageBatch.from_images([torch.randn(3, 64, 64), torch.randn(3, 24, 64)])
    for mask_invalid in (False, True):
        torch.manual_seed(3)
        config = replace(
            SMALL, queries="proposals", refine_references=True, mask_invalid_proposals=mask_invalid
        )
        model = build_model(config).eval()
        memory = model.encoder(model.embed(images))
        with torch.no_grad():  # the best objectness of all is that of a token set to zero
            empty = model.queries.memory_norm(model.queries.memory_projection(torch.zeros(32)))
            model.queries.head.class_head.weight[0] = empty
        references = model.queries(memory).references
        # A token in the padding proposes the box (1, 1, 1, 1): its base logit is infinite.
        assert bool((references == 1).all(-1).any()) == (not mask_invalid)


def test_refinement_starts_each_layer_at_the_last_boxes_and_detaches() -> None:
    torch.manual_seed(0)
    model = build_model(replace(SMALL, refine_references=True))
    output = model([torch.randn(3, 64, 64)])
    output.predictions[1].boxes_cxcywh.sum().backward()
    first, second = model.decoder.heads
    assert second.box_head[-1].weight.grad.abs().sum() > 0
    assert first.box_head[-1].weight.grad is None  # a layer's boxes do not answer for the next layer's
    # A fresh box head adds nothing, so the boxes of layer 1 are those of layer 0.
    torch.testing.assert_close(output.predictions[1].boxes_cxcywh, output.predictions[0].boxes_cxcywh)


def test_without_refinement_reference_points_learn_from_every_layer() -> None:
    torch.manual_seed(0)
    model = build_model(SMALL)
    for index in range(2):
        model.zero_grad()
        model([torch.randn(3, 64, 64)]).predictions[index].boxes_cxcywh.sum().backward()
        assert model.queries.reference_points.weight.grad.abs().sum() > 0


def test_further_levels_come_from_the_raw_last_map() -> None:
    neck = ChannelMapper([8, 16, 32], dim=16, num_levels=5)
    maps = [torch.randn(1, 8, 16, 16), torch.randn(1, 16, 8, 8), torch.randn(1, 32, 4, 4)]
    levels = neck(maps)
    assert [tuple(level.shape[1:]) for level in levels] == [
        (16, 16, 16),
        (16, 8, 8),
        (16, 4, 4),
        (16, 2, 2),
        (16, 1, 1),
    ]
    torch.testing.assert_close(levels[3], neck.levels[3](maps[2]))
    torch.testing.assert_close(levels[4], neck.levels[4](levels[3]))


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("resnet18", (128, 256, 512)),
        ("resnet50", (512, 1024, 2048)),
        ("tf_efficientnet_lite0", (40, 112, 320)),
    ],
)
def test_backbone_maps_and_frozen_part(name: str, channels: tuple[int, ...]) -> None:
    backbone = build_backbone(BackboneConfig(name), num_maps=3)
    assert backbone.channels == channels
    maps = backbone(torch.randn(1, 3, 64, 96))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (c, 64 // s, 96 // s) for c, s in zip(channels, (8, 16, 32), strict=True)
    ]
    trainable = [parameter.requires_grad for parameter in backbone.parameters()]
    first = trainable.index(True)
    assert first > 0
    assert all(trainable[first:])
    backbone.freeze(0)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    # Frozen batch norm has no parameters, and training mode does not change it.
    state = {key: value.clone() for key, value in backbone.state_dict().items()}
    backbone.train()(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(value, state[key]) for key, value in backbone.state_dict().items())


def test_dilated_stage_keeps_the_size_and_the_parameters() -> None:
    plain = build_backbone(BackboneConfig("resnet50"), num_maps=1)
    dilated = build_backbone(BackboneConfig("resnet50", dilation=True), num_maps=1)
    assert dilated.state_dict().keys() == plain.state_dict().keys()
    assert dilated(torch.randn(1, 3, 64, 64))[0].shape[-2:] == (4, 4)
    dilations = [block.conv2.dilation for block in dilated.stages[3]]
    assert dilations == [(1, 1), (2, 2), (2, 2)]


def test_unknown_backbones_and_weights_are_refused(tmp_path: Any) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match="timm has no feature extractor 'no_such_net'"):
        build_backbone(BackboneConfig("no_such_net"), num_maps=3)
    backbone = build_backbone(BackboneConfig("resnet18"), num_maps=3)
    with pytest.raises(UserError, match="there is no file"):
        backbone.load_pretrained(str(tmp_path / "absent.pth"))
    for name in ("junk.pth", "junk.safetensors"):
        (tmp_path / name).write_bytes(b"not a file of tensors")
        with pytest.raises(UserError, match=f"{name} is not a file of tensors"):
            backbone.load_pretrained(str(tmp_path / name))
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "part.pth")
    with pytest.raises(UserError, match="does not fit"):
        backbone.load_pretrained(str(tmp_path / "part.pth"))


def test_torchvision_weights_load_into_the_backbone(tmp_path: Any) -> None:  # type: ignore[no-untyped-def]
    import torchvision

    torch.manual_seed(0)
    source = torchvision.models.resnet18(weights=None).eval()
    torch.save(source.state_dict(), tmp_path / "resnet18.pth")
    backbone = build_backbone(BackboneConfig("resnet18"), num_maps=1).eval()
    backbone.load_pretrained(str(tmp_path / "resnet18.pth"))
    pixels = torch.randn(1, 3, 64, 64)
    features = torch.nn.Sequential(*list(source.children())[:-2])(pixels)
    torch.testing.assert_close(backbone(pixels)[0], features)

"""The number of parameters, to the last one, where they start, and AdamW's groups, as in the authors' code
(specification §3.4, §4.2, §6.1, §9.1)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from deformable_detr.config import ModelConfig, TrainConfig, recipe
from deformable_detr.models import build_model
from deformable_detr.training.optimisation import parameter_groups
from tests.support.parameter_counts import PARAMETERS
from tests.support.small_models import small_config

R50_BUFFERS, R101_BUFFERS = 106_240, 210_688


def config(name: str, backbone: str = "resnet50", **changes: object) -> ModelConfig:
    base = recipe(name).model
    return replace(base, backbone=replace(base.backbone, name=backbone), **changes)


DEFORMABLE, DETR = "deformable_detr_r50", "detr_r50"
# model: total, trainable, frozen batch norm buffers
ROWS = {
    "single scale": (
        config(f"{DEFORMABLE}_single_scale"),
        *PARAMETERS[f"{DEFORMABLE}_single_scale"],
        R50_BUFFERS,
    ),
    "single scale DC5": (
        config(f"{DEFORMABLE}_single_scale_dc5"),
        *PARAMETERS[f"{DEFORMABLE}_single_scale_dc5"],
        R50_BUFFERS,
    ),
    "Deformable DETR": (config(DEFORMABLE), *PARAMETERS[DEFORMABLE], R50_BUFFERS),
    "refine": (config(f"{DEFORMABLE}_refine"), *PARAMETERS[f"{DEFORMABLE}_refine"], R50_BUFFERS),
    "two-stage": (config(f"{DEFORMABLE}_two_stage"), *PARAMETERS[f"{DEFORMABLE}_two_stage"], R50_BUFFERS),
    "plus": (config(f"{DEFORMABLE}_plus"), *PARAMETERS[f"{DEFORMABLE}_plus"], R50_BUFFERS),
    "plus, 1024 wide": (config(f"{DEFORMABLE}_plus", ffn_dim=1024), 41_258_329, 41_035_929, R50_BUFFERS),
    "plus, 900 queries": (config(f"{DEFORMABLE}_plus", num_queries=900), 47_715_673, 47_493_273, R50_BUFFERS),
    "R101": (config(DEFORMABLE, "resnet101"), 59_009_569, 58_787_169, R101_BUFFERS),
    "R101 two-stage": (
        config(f"{DEFORMABLE}_two_stage", "resnet101"),
        *PARAMETERS["deformable_detr_r101_two_stage"],
        R101_BUFFERS,
    ),
    "3 levels": (config(DEFORMABLE, num_levels=3), 35_053_985, 34_831_585, R50_BUFFERS),
    "5 levels": (config(DEFORMABLE, num_levels=5), 40_956_577, 40_734_177, R50_BUFFERS),
    "1 point": (config(DEFORMABLE, num_points=1), 39_181_473, 38_959_073, R50_BUFFERS),
    "20 logits": (config(DEFORMABLE, num_classes=20), 40_051_418, 39_829_018, R50_BUFFERS),
    "DETR": (config(DETR), *PARAMETERS[DETR], R50_BUFFERS),
    "DETR-DC5": (config("detr_r50_dc5"), *PARAMETERS["detr_r50_dc5"], R50_BUFFERS),
    "DETR with 300 queries": (config(DETR, num_queries=300), 41_575_968, 41_353_568, R50_BUFFERS),
    "DETR R101": (recipe("detr_r101").model, *PARAMETERS["detr_r101"], R101_BUFFERS),
}
# model: everything else, backbone, sampling (reference points and sampling offsets)
GROUPS = {
    DEFORMABLE: (15_824_735, 23_232_512, 790_018),
    f"{DEFORMABLE}_single_scale": (10_413_791, 23_232_512, 197_890),
    f"{DEFORMABLE}_refine": (16_604_730, 23_232_512, 790_018),
    f"{DEFORMABLE}_two_stage": (16_937_113, 23_232_512, 789_504),
}


def on_meta(model_config: ModelConfig) -> nn.Module:
    """Shapes without numbers."""
    with torch.device("meta"):
        return build_model(model_config)


def size(tensors: Any) -> int:
    return sum(tensor.numel() for tensor in tensors)


@pytest.mark.parametrize(("model_config", "total", "trainable", "buffers"), ROWS.values(), ids=ROWS)
def test_counts(model_config: ModelConfig, total: int, trainable: int, buffers: int) -> None:
    model = on_meta(model_config)
    assert size(model.parameters()) == total
    assert size(parameter for parameter in model.parameters() if parameter.requires_grad) == trainable
    assert size(model.buffers()) == buffers


def test_what_the_parts_of_the_base_model_have() -> None:
    model = on_meta(config(DEFORMABLE))
    frozen = [parameter for parameter in model.backbone.parameters() if not parameter.requires_grad]
    assert size(frozen) == 222_400
    assert size(model.backbone.parameters()) - size(frozen) == 23_232_512
    assert size(model.neck.parameters()) == 5_639_168
    assert size(model.encoder.parameters()) == 4_541_184
    assert size(model.decoder.layers.parameters()) == 6_123_264
    assert size(model.decoder.heads[0].class_head.parameters()) == 23_387
    assert size(model.decoder.heads[0].box_head.parameters()) == 132_612
    assert size(model.position.parameters()) == 1_024
    assert size(model.queries.reference_points.parameters()) == 514
    assert size([model.queries.positions, model.queries.content]) == 153_600


def initialised(name: str, **changes: object) -> nn.Module:
    torch.manual_seed(0)
    return build_model(small_config(name, **changes))


@pytest.mark.parametrize(
    ("name", "size_biases"),
    [
        (DEFORMABLE, [-2.0]),
        (f"{DEFORMABLE}_refine", [-2.0, 0.0]),
        (f"{DEFORMABLE}_two_stage", [0.0, 0.0]),
    ],
)
def test_boxes_start_at_their_references(name: str, size_biases: list[float]) -> None:
    model = initialised(name)
    heads = list(model.decoder.heads) + ([model.queries.head] if name.endswith("two_stage") else [])
    for head in heads:
        assert head.class_head.bias.detach() == pytest.approx(-4.59512)
        assert not head.box_head[-1].weight.any()
        assert not head.box_head[-1].bias[:2].any()
    assert [head.box_head[-1].bias[2:].tolist() for head in model.decoder.heads] == [
        [b, b] for b in size_biases
    ]


def test_heads_of_detr_start_anywhere() -> None:
    head = initialised(DETR).decoder.heads[0]
    assert head.box_head[-1].weight.any()
    assert head.class_head.bias.abs().max() < 1


def test_sampling_starts_on_a_square_around_the_reference() -> None:
    attention = initialised(DEFORMABLE).encoder.layers[0].attention
    offsets = attention.sampling_offsets.bias.view(8, 4, 4, 2).detach()
    corners = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    for head, corner in enumerate(corners):
        for level in range(4):
            for k in range(4):
                expected = [(k + 1) * corner[0], (k + 1) * corner[1]]
                assert offsets[head, level, k].tolist() == pytest.approx(expected, abs=1e-5)
    for tensor in (attention.sampling_offsets.weight, *attention.attention_weights.parameters()):
        assert not tensor.any()
    assert not attention.value_projection.bias.any()


def test_matrices_of_the_transformer_start_xavier_uniform() -> None:
    """Bounded by sqrt(6 / (rows + columns)), and reaching near it; biases of attention are zero."""
    for name in (DETR, DEFORMABLE):
        model = initialised(name, hidden_dim=64, ffn_dim=128)
        layer = model.decoder.layers[0]
        for weight in (
            layer.self_attention.in_proj_weight,
            layer.self_attention.out_proj.weight,
            layer.feedforward.linear1.weight,
            layer.feedforward.linear2.weight,
        ):
            bound = (6 / sum(weight.shape)) ** 0.5
            assert 0.98 * bound < weight.abs().max() <= bound
        assert not layer.self_attention.in_proj_bias.any()
        assert not layer.self_attention.out_proj.bias.any()
        assert layer.feedforward.linear1.bias.any()


@pytest.mark.parametrize(("name", "sizes"), GROUPS.items(), ids=GROUPS)
def test_parameter_groups(name: str, sizes: tuple[int, int, int]) -> None:
    groups = parameter_groups(on_meta(config(name)), TrainConfig())
    assert [group["name"] for group in groups] == ["base", "backbone", "sampling"]
    assert tuple(size(group["params"]) for group in groups) == sizes
    assert [group["lr"] for group in groups] == pytest.approx([2e-4, 2e-5, 2e-5])


def test_detr_has_two_groups() -> None:
    settings = recipe(DETR).train
    groups = parameter_groups(on_meta(config(DETR)), settings)
    assert {group["name"]: (size(group["params"]), group["lr"]) for group in groups} == {
        "base": (41_302_368 - 23_232_512, 1e-4),
        "backbone": (23_232_512, 1e-5),
    }

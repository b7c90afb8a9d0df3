"""Models start as the authors' do (specification §3.4)."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deformable_detr.config import RECIPES
from deformable_detr.models import build_model
from deformable_detr.models.feedforward import FeedForward
from tests.support.small_models import small_config


@cache
def untrained(name: str) -> Any:  # a `DetectionModel`, whose parts the checker knows as modules only
    torch.manual_seed(0)
    return build_model(small_config(name, hidden_dim=64, num_classes=20, encoder_layers=3, decoder_layers=3))


def assert_uniform(values: Tensor, bound: float) -> None:
    """Draws from U(-bound, bound); there are enough of them to come near to its ends."""
    assert 0.9 * bound < float(values.detach().abs().max()) <= bound


@pytest.mark.parametrize("name", RECIPES)
def test_heads_start_as_copies_of_one(name: str) -> None:
    model = untrained(name)
    first, *others = model.decoder.heads
    if hasattr(model.queries, "head"):
        others.append(model.queries.head)
    for head in others:
        for parameter, copy in zip(first.parameters(), head.parameters(), strict=True):
            assert parameter is copy or parameter.data_ptr() != copy.data_ptr()
        assert torch.equal(first.class_head.weight, head.class_head.weight)
        assert torch.equal(first.class_head.bias, head.class_head.bias)
        for index in (0, 2):
            assert torch.equal(first.box_head[index].weight, head.box_head[index].weight)
            assert torch.equal(first.box_head[index].bias, head.box_head[index].bias)
        assert torch.equal(first.box_head[4].weight, head.box_head[4].weight)


@pytest.mark.parametrize("name", RECIPES)
def test_feedforward_biases_start_equal_and_matrices_different(name: str) -> None:
    model = untrained(name)
    for layers in (model.encoder.layers, model.decoder.layers):
        first, *others = [layer.feedforward for layer in layers]
        assert len(others) == 2
        for other in others:
            for linear in ("linear1", "linear2"):
                mine, theirs = getattr(first, linear), getattr(other, linear)
                assert torch.equal(mine.bias, theirs.bias)
                assert mine.bias.data_ptr() != theirs.bias.data_ptr()
                assert not torch.equal(mine.weight, theirs.weight)
    encoders, decoders = model.encoder.layers[0].feedforward, model.decoder.layers[0].feedforward
    assert not torch.equal(encoders.linear1.bias, decoders.linear1.bias)


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_drawn_has_the_authors_distributions(name: str) -> None:
    model = untrained(name)
    for module in (*model.encoder.modules(), *model.decoder.modules()):
        if isinstance(module, FeedForward):
            for linear in (module.linear1, module.linear2):
                assert_uniform(linear.weight, math.sqrt(6 / sum(linear.weight.shape)))
                assert_uniform(linear.bias, 1 / math.sqrt(linear.in_features))
        if isinstance(module, nn.MultiheadAttention):
            assert_uniform(module.in_proj_weight, math.sqrt(6 / sum(module.in_proj_weight.shape)))
            assert_uniform(module.out_proj.weight, math.sqrt(6 / sum(module.out_proj.weight.shape)))
            assert not module.in_proj_bias.any()
            assert not module.out_proj.bias.any()
    for head in model.decoder.heads:
        for linear in (head.class_head, head.box_head[0], head.box_head[2]):
            assert_uniform(linear.weight, 1 / math.sqrt(linear.in_features))


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("deformable_detr_r50", [-2.0]),
        ("deformable_detr_r50_refine", [-2.0, 0.0, 0.0]),
        ("deformable_detr_r50_two_stage", [0.0, 0.0, 0.0]),
    ],
)
def test_boxes_start_at_their_reference(name: str, sizes: list[float]) -> None:
    model = untrained(name)
    for head, size in zip(model.decoder.heads, sizes, strict=True):
        assert not head.box_head[4].weight.any()
        assert head.box_head[4].bias.tolist() == [0, 0, size, size]
        torch.testing.assert_close(head.class_head.bias, torch.full((20,), -math.log(99)))

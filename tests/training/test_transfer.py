"""Starting from another model: rows by class name, queries by position, the rest by name and shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from deformable_detr.checkpoint import Checkpoint
from deformable_detr.config import RunConfig
from deformable_detr.detections import ClassTable
from deformable_detr.errors import UserError
from deformable_detr.inference.loading import new_checkpoint
from deformable_detr.training.transfer import transfer
from tests.support.tiny import as_detr, tiny_config


def model_for(names: Sequence[str | None], config: RunConfig | None = None) -> Checkpoint:
    config = config or tiny_config()
    table = ClassTable(tuple(names), tuple(range(len(names))))
    checkpoint = new_checkpoint(config.model, table, config.data, config.recipe, None)
    with torch.no_grad():
        for parameter in checkpoint.model.parameters():  # nothing may agree by its initial value
            parameter.copy_(torch.randn_like(parameter))
    return checkpoint


def copied(checkpoint: Checkpoint) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in checkpoint.model.state_dict().items()}


def two_stage(**changes: Any) -> RunConfig:
    return tiny_config(**{"queries": "proposals", "num_queries": 5, **changes})


def class_heads(checkpoint: Checkpoint) -> list[str]:
    return [name for name in checkpoint.model.state_dict() if ".class_head." in name]


def test_rows_follow_the_names_of_classes() -> None:
    source, target = model_for(["cat", None, "Dog", "cow"]), model_for(["dog", "bird", " COW "])
    before, given = copied(target), copied(source)
    result = transfer(source, target)
    assert result.matched_classes == ("dog", " COW ")
    assert result.fresh_classes == ("bird",)
    assert (result.fresh_queries, result.fresh_tensors, result.unused_tensors) == (0, (), ())
    after = target.model.state_dict()
    heads = class_heads(target)
    assert heads
    for name, value in after.items():
        if name in heads:
            assert torch.equal(value[[0, 2]], given[name][[2, 3]])
            assert torch.equal(value[1], before[name][1])
        else:
            assert torch.equal(value, given[name]), name
    assert all(torch.equal(value, given[name]) for name, value in source.model.state_dict().items())


def test_the_report_of_a_transfer() -> None:
    source = model_for(["a", "b"])
    target = model_for(["b", *(f"new {i}" for i in range(10))], tiny_config(num_queries=14, decoder_layers=3))
    first, second, third, fourth = transfer(source, target).sentences()
    assert first == "1 classes taken over: b"
    assert second.startswith("10 classes start fresh: new 0, new 1")
    assert second.endswith("… and 2 more")
    assert third == "4 queries start fresh"
    assert "tensors start fresh: decoder.layers.2." in fourth


def test_weights_without_a_counterpart_are_reported() -> None:
    result = transfer(model_for(["a"]), model_for(["a"], tiny_config(decoder_layers=1)))
    assert result.fresh_tensors == ()
    assert any(name.startswith("decoder.layers.1.") for name in result.unused_tensors)
    assert "left out: decoder" in result.sentences()[-1]


@pytest.mark.parametrize("number", [6, 14])
def test_another_number_of_queries(number: int) -> None:
    source, target = model_for(["a"]), model_for(["a"], tiny_config(num_queries=number))
    before = copied(target)
    result = transfer(source, target)
    assert result.fresh_queries == max(0, number - 10)
    for name in ("queries.positions", "queries.content"):
        value = target.model.state_dict()[name]
        assert torch.equal(value[:10], source.model.state_dict()[name][:number])
        assert torch.equal(value[10:], before[name][10:])


def test_softmax_takes_the_row_of_no_object() -> None:
    config = as_detr(tiny_config())
    source, target = model_for(["a", "b", "c"], config), model_for(["c", "d"], config)
    before = copied(target)
    transfer(source, target)
    heads = class_heads(target)
    for name in heads:
        value, given = target.model.state_dict()[name], source.model.state_dict()[name]
        assert torch.equal(value[0], given[2])
        assert torch.equal(value[1], before[name][1])
        assert torch.equal(value[2], given[3])


def test_rows_of_another_classification_are_not_taken() -> None:
    softmax = as_detr(tiny_config())
    sigmoid = replace(softmax, model=replace(softmax.model, classification="sigmoid_focal"))
    source, target = model_for(["a", "b"], softmax), model_for(["a", "b"], sigmoid)
    before = copied(target)
    result = transfer(source, target)
    assert result.matched_classes == ()
    assert result.fresh_classes == ("a", "b")
    assert all(torch.equal(target.model.state_dict()[name], before[name]) for name in class_heads(target))


def test_objectness_stays_logit_0_of_the_first_stage() -> None:
    source, target = model_for(["a", "b"], two_stage()), model_for(["new", "a"], two_stage())
    transfer(source, target)
    bias = "queries.head.class_head.bias"
    taken, given = target.model.state_dict()[bias], source.model.state_dict()[bias]
    assert taken[0] == given[0]  # although class 0 starts fresh elsewhere
    assert taken[1] == given[0]


@pytest.mark.parametrize(
    "changes",
    [{"hidden_dim": 64}, {"ffn_dim": 32}, {"num_levels": 2}, {"model.backbone.name": "test_resnet"}],
    ids=str,
)
def test_another_architecture_is_refused_and_nothing_is_changed(changes: dict[str, Any]) -> None:
    source, target = model_for(["a"]), model_for(["a"], tiny_config(**changes))
    before = copied(target)
    with pytest.raises(UserError, match=r"differs from recipe deformable_detr_lite in \d+ tensors"):
        transfer(source, target)
    assert all(torch.equal(value, before[name]) for name, value in target.model.state_dict().items())


def test_learned_content_of_proposals_follows_their_rank_and_starts_fresh_without_a_source() -> None:
    mixed, plain = two_stage(queries="mixed"), two_stage()
    source, target = model_for(["a"], mixed), model_for(["a"], two_stage(queries="mixed", num_queries=8))
    before = copied(target)
    assert transfer(source, target).fresh_queries == 3
    content = target.model.state_dict()["queries.content"]
    assert torch.equal(content[:5], source.model.state_dict()["queries.content"])
    assert torch.equal(content[5:], before["queries.content"][5:])
    assert transfer(model_for(["a"], plain), model_for(["a"], mixed)).fresh_tensors == ("queries.content",)
    assert transfer(model_for(["a"], mixed), model_for(["a"], plain)).unused_tensors == ("queries.content",)

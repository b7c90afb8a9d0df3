"""Routes, which are used only in training: what they compute, and that models contain nothing of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import deformable_detr as dd
from deformable_detr.classification import build_classification
from deformable_detr.config import RunConfig, override, recipe
from deformable_detr.errors import UserError
from deformable_detr.loss import QualityAssigner, SetCriterion
from deformable_detr.models import build_model
from deformable_detr.structures import ImageBatch, Queries, Target
from deformable_detr.training import train
from deformable_detr.training.learner import Learner
from deformable_detr.training.messages import opening_lines
from deformable_detr.training.parts import build_parts
from deformable_detr.training.routes import Route, build_routes
from deformable_detr.training.routes.instructed import Instruction
from deformable_detr.training.routes.no_self_attention import NoSelfAttention
from tests.support.interrupted import CrashError, before_update, crash
from tests.support.small_models import randomise
from tests.support.tiny import (
    assert_same_movement,
    assert_same_run,
    repeatable_in_parts,
    routed_config,
    rows,
    state,
    tiny_config,
    weights,
)

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGES = ImageBatch.from_images([torch.randn(3, 64, 80), torch.randn(3, 48, 96)])
TARGETS = [
    Target(torch.tensor([1, 2, 1]), torch.rand(3, 4) * 0.4 + 0.2, "a"),
    Target(torch.tensor([], dtype=torch.int64), torch.zeros(0, 4), "b"),
]
ROUTE_WEIGHTS = ("train.routes.no_self_attention", "train.routes.instructed", "train.routes.denoising")


def learner_of(config: RunConfig, seed: int = 0) -> tuple[Learner, SetCriterion]:
    torch.manual_seed(seed)
    model = build_model(config.model)
    randomise(model)
    criterion = SetCriterion(build_classification(config.model), config.train.loss)
    return Learner(model, build_routes(config, model, criterion)), criterion


def gradients(learner: Learner, criterion: SetCriterion) -> dict[str, Tensor | None]:
    learner.zero_grad()
    torch.manual_seed(1)
    output, further = learner(IMAGES, TARGETS)
    criterion(output, TARGETS, None, further).total.backward()
    return {name: parameter.grad for name, parameter in learner.model.named_parameters()}


def without_dropout(**changes: Any) -> RunConfig:
    return routed_config(**{"dropout": 0.0, **changes})


def test_the_models_own_pass_is_what_it_is_without_routes() -> None:
    learner, _ = learner_of(without_dropout())
    output, further = learner(IMAGES, TARGETS)
    plain = learner.model(IMAGES)
    for found, wanted in zip(output.predictions, plain.predictions, strict=True):
        assert torch.equal(found.logits, wanted.logits)
        assert torch.equal(found.boxes_cxcywh, wanted.boxes_cxcywh)
    suffixes = [stage.suffix for stage in further]
    assert suffixes == [
        *("_no_self_attention", "_no_self_attention_0"),
        *("_instructed", "_instructed_0"),
        *("_denoising", "_denoising_0"),
    ]
    weights = {stage.suffix.removesuffix("_0"): stage.weight for stage in further}
    assert weights["_no_self_attention"] == 0.33
    assert weights["_instructed"] == 1.0
    assert weights["_denoising"] == 0.5


def test_routes_of_weight_zero_do_not_change_the_gradient() -> None:
    learner, criterion = learner_of(without_dropout())
    for route in learner.routes.values():
        assert isinstance(route, Route)
        route.weight = 0.0
    with_routes = gradients(learner, criterion)
    alone, criterion = learner_of(without_dropout(**dict.fromkeys(ROUTE_WEIGHTS, 0.0)))
    alone.model.load_state_dict(learner.model.state_dict())
    assert not alone.routes
    for name, gradient in gradients(alone, criterion).items():
        found = with_routes[name]
        assert (found is None) == (gradient is None), name
        if gradient is not None and found is not None:
            assert torch.equal(found, gradient), name


@pytest.mark.parametrize("weight", ROUTE_WEIGHTS)
def test_every_route_changes_the_gradient_of_encoder_and_decoder(weight: str) -> None:
    others = {name: 0.0 for name in ROUTE_WEIGHTS if name != weight}
    learner, criterion = learner_of(without_dropout(**others))
    with_route = gradients(learner, criterion)
    for parameter in learner.routes.parameters():
        assert parameter.grad is not None
        assert parameter.grad.any()
    learner.routes.clear()
    without = gradients(learner, criterion)
    for part in ("encoder.layers.0.attention.value_projection.weight", "decoder.heads.0.class_head.weight"):
        one, other = with_route[part], without[part]
        assert one is not None
        assert other is not None
        assert not torch.allclose(one, other)


def test_without_self_attention_queries_do_not_see_each_other() -> None:
    """A query's predictions are the same whatever the other queries are."""
    learner, _ = learner_of(without_dropout())
    model = learner.model.eval()
    memory = model.remember(IMAGES)
    queries = model.queries(memory)
    route = NoSelfAttention(QualityAssigner(build_classification(routed_config().model)))
    first = Queries(queries.content[:, :1], queries.positions[:, :1], queries.references[:, :1])
    all_stages, one_stage = (route(model, memory, each, TARGETS) for each in (queries, first))
    for found, wanted in zip(all_stages, one_stage, strict=True):
        torch.testing.assert_close(found.predictions.logits[:, :1], wanted.predictions.logits)
        torch.testing.assert_close(found.predictions.boxes_cxcywh[:, :1], wanted.predictions.boxes_cxcywh)
    assert not list(route.parameters())


def test_tokens_take_part_in_self_attention_and_are_thrown_away() -> None:
    """Mr. DETR's formula: queries = keys = [T + P; x + p], values = [T; x], without the first outputs."""
    learner, _ = learner_of(without_dropout())
    layer, instruction = learner.model.decoder.layers[0], Instruction(32)
    content, positions = torch.randn(2, 5, 32), torch.randn(2, 5, 32)
    values = torch.cat([instruction.content.expand(2, -1, -1), content], dim=1)
    keys = values + torch.cat([instruction.positions.expand(2, -1, -1), positions], dim=1)
    attended, _ = layer.self_attention(keys, keys, values)  # type: ignore[operator]
    wanted = instruction.norm(content + attended[:, 10:])
    torch.testing.assert_close(instruction(layer, content, positions), wanted)


def test_the_parameters_of_instructions() -> None:
    config = recipe("deformable_detr_r50_plus_routes")
    criterion = SetCriterion(build_classification(config.model), config.train.loss)
    with torch.device("meta"):
        routes = build_routes(config, build_model(config.model), criterion)
    assert list(routes) == ["instructed"]
    assert sum(parameter.numel() for parameter in routes.parameters()) == 33_792


def test_one_stage_models_have_routes_too() -> None:
    config = override(
        routed_config(),
        {"model.queries": "reference_points", "train.routes.denoising": 0.0},
    )
    learner, criterion = learner_of(config)
    assert all(gradient is not None for gradient in gradients(learner, criterion).values())


# --- whole runs -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def routed_run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """A run with all routes that was never stopped."""
    run = tmp_path_factory.mktemp("routed") / "run"
    train(tiny_data, routed_config(), run)
    return run


def test_saved_models_contain_nothing_of_routes(routed_run: Path) -> None:
    plain = build_model(dd.load(routed_run).config).state_dict()
    for name in ("last", "best"):
        assert weights(routed_run, name).keys() == plain.keys()
    tensors = state(routed_run)["routes"]["tensors"]
    assert {name.split(".")[0] for name in tensors} == {"instructed", "denoising"}


def test_the_log_shows_routes_apart(routed_run: Path) -> None:
    for row in rows(routed_run, "train"):
        for term in ("class", "box", "giou"):
            assert {f"{term}_denoising", f"{term}_instructed_0", f"{term}_no_self_attention"} <= row.keys()


def test_the_opening_lines_name_the_routes(tiny_data: Path, tmp_path: Path) -> None:
    run = build_parts(tiny_data, routed_config(), tmp_path / "run", device="cpu")
    (line,) = [line for line in opening_lines(run) if "routes" in line]
    extra = sum(parameter.numel() for parameter in run.state.routes.parameters())
    for fact in ("no_self_attention, instructed, denoising", f"{extra:,}"):
        assert fact in line
    plain = build_parts(tiny_data, tiny_config(), tmp_path / "plain", device="cpu")
    assert not [line for line in opening_lines(plain) if "routes" in line]


def test_resumed_after_a_crash(
    routed_run: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        before_update(patch, 10, crash)
        with pytest.raises(CrashError):
            train(tiny_data, routed_config(checkpoint_every=4), tmp_path / "run")
    assert state(tmp_path / "run")["step"] == 8
    train(tiny_data, None, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", routed_run)
    mine, theirs = (state(run)["routes"]["tensors"] for run in (tmp_path / "run", routed_run))
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]), name


def test_resume_refuses_other_routes(tiny_data: Path, tmp_path: Path) -> None:
    train(tiny_data, routed_config(max_steps=1), tmp_path / "run")
    with pytest.raises(UserError, match=r"train\.routes are no_self_attention, instructed, denoising, now"):
        train(tiny_data, None, tmp_path / "run", resume=True, instructed=0.0)


def test_micro_batches_give_the_weights_of_one_batch(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without denoising, whose noise depends on how a batch is split. Plain descent, as in test_update.py.
    monkeypatch.setattr(torch.optim, "AdamW", torch.optim.SGD)
    settings = {"queries": "mixed", **dict.fromkeys(ROUTE_WEIGHTS[:2], 1.0)}
    train(tiny_data, repeatable_in_parts(batch_size=4, max_steps=0, **settings), tmp_path / "start")
    for batch_size, accumulate in ((4, 1), (1, 4)):
        config = repeatable_in_parts(batch_size=batch_size, accumulate=accumulate, max_steps=2, **settings)
        train(tiny_data, config, tmp_path / f"{batch_size}x{accumulate}")
    assert_same_movement(tmp_path / "1x4", tmp_path / "4x1", tmp_path / "start", 1e-4)


def test_cached_features_serve_routes(tiny_data: Path, tmp_path: Path) -> None:
    changes = {
        "trainable_layers": 0,
        "augmentation": "none",
        "batch_size": 1,
        "accumulate": 2,
        "max_steps": 8,
    }
    for name, cached in (("without", False), ("with", True)):
        train(tiny_data, routed_config(cache_features=cached, **changes), tmp_path / name)
    for row, expected in zip(
        rows(tmp_path / "with", "train"), rows(tmp_path / "without", "train"), strict=True
    ):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-4)
        assert row["class_denoising"] == pytest.approx(expected["class_denoising"], rel=1e-4)


def test_activation_checkpointing_serves_routes(tiny_data: Path, tmp_path: Path) -> None:
    for name, checkpointed in (("without", False), ("with", True)):
        config = routed_config(activation_checkpointing=checkpointed, max_steps=2, dropout=0.0)
        train(tiny_data, config, tmp_path / name)
    found, wanted = weights(tmp_path / "with"), weights(tmp_path / "without")
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value)

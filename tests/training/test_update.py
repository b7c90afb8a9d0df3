"""One update alone, and updates in micro-batches; losses and gradients that are not finite."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import deformable_detr as dd
from deformable_detr.cli import main
from deformable_detr.config import RECIPES, RunConfig
from deformable_detr.errors import NonFiniteError
from deformable_detr.loss import Losses, SetCriterion, Stage
from deformable_detr.structures import BatchCount, DetectorOutput, ImageBatch, Target
from deformable_detr.training import train
from deformable_detr.training.parts import Parts, build_parts, micro_batches_on
from deformable_detr.training.replica import replica_for_training
from deformable_detr.training.update import MicroBatch, count_update, update
from tests.support.tiny import (
    as_detr,
    assert_same_movement,
    changed_data,
    repeatable_in_parts,
    rows,
    tiny_config,
)
from tests.support.transfers import counted_transfers

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("family", [lambda config: config, as_detr], ids=["focal", "softmax"])
def test_micro_batches_give_the_weights_of_one_batch(
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    family: Callable[[RunConfig], RunConfig],
) -> None:
    # AdamW divides a gradient that is nothing but rounding by itself; plain descent shows what it is.
    monkeypatch.setattr(torch.optim, "AdamW", torch.optim.SGD)
    data = changed_data(tiny_data, tmp_path / "data", some_images_empty)
    train(data, family(repeatable_in_parts(batch_size=4, max_steps=0)), tmp_path / "start")
    for batch_size, accumulate in ((4, 1), (2, 2), (1, 4)):
        config = family(repeatable_in_parts(batch_size=batch_size, accumulate=accumulate, max_steps=2))
        train(data, config, tmp_path / f"{batch_size}x{accumulate}")
    for parts in ("2x2", "1x4"):
        assert_same_movement(tmp_path / parts, tmp_path / "4x1", tmp_path / "start", 1e-4)
        for mine, theirs in zip(
            rows(tmp_path / parts, "train"), rows(tmp_path / "4x1", "train"), strict=True
        ):
            for name in ("loss", "class", "box", "giou", "gradient_norm"):
                assert mine[name] == pytest.approx(theirs[name], rel=1e-4)


@pytest.mark.parametrize("batching", ["single", "auto"])
def test_single_images_are_micro_batches_of_one(tiny_data: Path, tmp_path: Path, batching: str) -> None:
    data = changed_data(tiny_data, tmp_path / "data", some_images_empty)
    padded, ones = tiny_config(batch_size=2, accumulate=2), tiny_config(batch_size=1, accumulate=4)
    single = tiny_config(batch_size=2, accumulate=2, batching=batching)
    runs = [build_parts(data, config, tmp_path / "run", device="cpu") for config in (padded, single, ones)]
    assert {run.total_batch for run in runs} == {4}
    of_padded, of_single, of_ones = (next(run.updates(0, 1)) for run in runs)
    assert [len(targets) for _, targets in of_padded] == [2, 2]
    assert [len(targets) for _, targets in of_single] == [1, 1, 1, 1]
    assert not any(images.mask.any() for images, _ in of_single)
    for (mine, _), (theirs, _) in zip(of_single, of_ones, strict=True):
        assert isinstance(mine, ImageBatch)
        assert isinstance(theirs, ImageBatch)
        assert torch.equal(mine.pixels, theirs.pixels)


def test_auto_means_single_images_on_a_cpu_only() -> None:
    settings = {name: tiny_config(batch_size=4, batching=name).train for name in ("padded", "single", "auto")}
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 1)
    assert {name: micro_batches_on(cpu, one) for name, one in settings.items()} == {
        "padded": (4, 1),
        "single": (1, 4),
        "auto": (1, 4),
    }
    assert micro_batches_on(gpu, settings["auto"]) == (4, 1)
    assert micro_batches_on(gpu, settings["single"]) == (1, 4)
    by_default = {name for name, recipe in RECIPES.items() if recipe().train.batching != "padded"}
    assert by_default == {"deformable_detr_lite"}


def some_images_empty(content: dict[str, Any]) -> None:
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] % 3]


@pytest.fixture
def broken(whole_run: Path, tmp_path: Path) -> Path:
    """A model whose class heads say NaN."""
    detector = dd.load(whole_run)
    detector.save(tmp_path / "broken")
    tensors = {key: value.clone() for key, value in detector.model.state_dict().items()}
    for key in [key for key in tensors if key.endswith("class_head.bias")]:
        tensors[key].fill_(math.nan)
    save_file(tensors, tmp_path / "broken" / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "broken"


def test_weights_that_are_not_numbers(
    broken: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(NonFiniteError, match=r"update 1: .*image \d+.*lower the learning rate"):
        train(tiny_data, tiny_config(), tmp_path / "python", init_from=broken)
    arguments = ["--init-from", str(broken), "--output", str(tmp_path / "command"), "--data.num_workers", "0"]
    assert main(["train", str(tiny_data), *arguments]) == 1
    error = capsys.readouterr().err
    assert "update 1" in error
    assert "Traceback" not in error


def test_a_learning_rate_that_blows_up(tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"update [2-9]"):
        train(tiny_data, tiny_config(lr=1e30, clip_norm=0.0, warmup_steps=0), tmp_path / "run")


def test_gradients_that_are_not_numbers_do_not_reach_the_weights(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = SetCriterion.__call__

    def with_infinite_slope(self: SetCriterion, output: Any, *rest: Any) -> Losses:
        losses = call(self, output, *rest)
        return replace(losses, total=losses.total + (output.predictions[-1].logits * 0).sum().sqrt())

    monkeypatch.setattr(SetCriterion, "__call__", with_infinite_slope)
    with pytest.raises(NonFiniteError, match=r"update 1: the gradient .*images? \d+"):
        train(tiny_data, tiny_config(), tmp_path / "run")


# --- update() alone ---------------------------------------------------------------------------------------


@pytest.fixture
def run(tiny_data: Path, tmp_path: Path) -> Parts:
    """A model without dropout and plain descent, so that an update can be calculated by hand."""
    config = repeatable_in_parts(batch_size=2, accumulate=2)
    run = build_parts(tiny_data, config, tmp_path / "run", device="cpu")
    assert run.total_batch == 4
    return run


def descent(run: Parts) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in run.state.model.parameters() if p.requires_grad], lr=0.01)


def first_update(run: Parts) -> tuple[list[MicroBatch], BatchCount]:
    micro_batches = next(run.updates(0, 1))
    return micro_batches, count_update(micro_batches, run.config.model.num_queries, run.processes)


def gradient_by_hand(run: Parts, micro_batches: list[MicroBatch], count: BatchCount) -> dict[str, Tensor]:
    model = copy.deepcopy(run.state.model).train()
    for images, targets in micro_batches:
        run.criterion(model(images), targets, count).total.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("clip_norm", [0.0, 0.1])
def test_an_update_is_one_step_along_the_gradient(run: Parts, clip_norm: float) -> None:
    micro_batches, count = first_update(run)
    gradient = gradient_by_hand(run, micro_batches, count)
    norm = float(torch.cat([value.flatten() for value in gradient.values()]).norm())
    factor = min(1.0, clip_norm / norm) if clip_norm else 1.0
    assert not clip_norm or factor < 1
    before = {name: p.detach().clone() for name, p in run.state.model.named_parameters()}
    losses = update(run.learner, run.criterion, descent(run), micro_batches, count=count, clip_norm=clip_norm)
    for name, parameter in run.state.model.named_parameters():
        expected = before[name] - (0.01 * factor * gradient[name] if name in gradient else 0.0)
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-4, atol=1e-7)
        assert parameter.grad is None
    assert losses.get("gradient_norm") == (pytest.approx(norm, rel=1e-4) if clip_norm else None)
    assert {"loss", "class", "box", "giou", "class_0"} <= set(losses)


def test_the_losses_are_those_of_all_micro_batches(run: Parts) -> None:
    micro_batches, count = first_update(run)
    model = run.state.model.train()
    with torch.no_grad():
        parts = [run.criterion(model(images), targets, count) for images, targets in micro_batches]
    losses = update(run.learner, run.criterion, descent(run), micro_batches, count=count)
    assert losses["loss"] == pytest.approx(sum(float(part.total) for part in parts))
    assert losses["giou"] == pytest.approx(sum(float(part.terms["giou"]) for part in parts))


def test_a_count_is_of_all_micro_batches(run: Parts) -> None:
    micro_batches, count = first_update(run)
    objects = sum(len(target) for _, targets in micro_batches for target in targets)
    assert (count.objects, count.images) == (objects, 4)


def test_a_loss_that_is_not_finite_moves_nothing(run: Parts) -> None:
    micro_batches, count = first_update(run)
    before = {name: value.clone() for name, value in run.state.model.state_dict().items()}

    def infinite(
        output: DetectorOutput, targets: Sequence[Target], count: BatchCount, further: Sequence[Stage]
    ) -> Losses:
        losses = run.criterion(output, targets, count, further)
        return replace(losses, total=losses.total * math.inf)

    with pytest.raises(NonFiniteError, match=r"update 7: the loss of images \d+, \d+ is inf"):
        update(run.learner, infinite, descent(run), micro_batches, count=count, number=7)
    assert all(torch.equal(value, before[name]) for name, value in run.state.model.state_dict().items())


@pytest.mark.parametrize("two_stage", [False, True])
def test_a_gpu_would_be_waited_for_once_a_micro_batch_and_once_an_update(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_stage: bool
) -> None:
    """Once for the matching of all stages; once for the numbers of the log and whether they are finite."""
    config = repeatable_in_parts(batch_size=2, accumulate=2)
    if two_stage:
        model = replace(config.model, queries="proposals", refine_references=True)
        config = replace(config, model=model)
    for_gpu = partial(replica_for_training, device=torch.device("cuda"))
    monkeypatch.setattr(
        "deformable_detr.training.parts.replica_for_training", lambda model, *_: for_gpu(model)
    )
    run = build_parts(tiny_data, config, tmp_path / "run", device="cpu")
    micro_batches, count = first_update(run)
    with counted_transfers() as counts:
        update(run.learner, run.criterion, descent(run), micro_batches, count=count, clip_norm=0.1)
    matrices = counts.pop("numpy")  # of what is on the host
    assert matrices == 2 * (1 + two_stage)  # of all layers of a micro-batch, and of its proposals
    # To the device: pixels and mask, labels and boxes of two images, and matches, of two micro-batches.
    assert counts == {"cpu": 2, "tolist": 1, "to": 2 * (2 + 2 * 2 + 1)}


def test_bfloat16_reaches_the_forward_pass_only(run: Parts) -> None:
    micro_batches, count = first_update(run)
    dtypes: list[torch.dtype] = []
    (encoder,) = (each for name, each in run.learner.named_modules() if name.endswith("model.encoder"))
    hook = encoder.register_forward_hook(
        lambda module, inputs, memory: dtypes.append(torch.get_autocast_dtype("cpu"))
    )
    update(run.learner, run.criterion, descent(run), micro_batches, count=count, dtype=torch.bfloat16)
    hook.remove()
    assert dtypes == [torch.bfloat16] * len(micro_batches)
    assert not torch.is_autocast_enabled("cpu")
    assert {p.dtype for p in run.state.model.parameters()} == {torch.float32}


def test_a_scaler_leaves_out_an_update_with_an_infinite_gradient(run: Parts) -> None:
    micro_batches, count = first_update(run)
    before = {name: value.clone() for name, value in run.state.model.named_parameters()}
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=1)
    optimizer = descent(run)
    losses = update(
        run.learner, run.criterion, optimizer, micro_batches, count=count, scaler=scaler, clip_norm=0.1
    )
    assert "gradient_norm" not in losses
    assert math.isfinite(losses["loss"])
    assert all(torch.equal(value, before[name]) for name, value in run.state.model.named_parameters())
    assert scaler.get_scale() == 2.0**126
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    losses = update(
        run.learner, run.criterion, optimizer, micro_batches, count=count, scaler=scaler, clip_norm=0.1
    )
    assert losses["gradient_norm"] > 0.1
    assert any(not torch.equal(value, before[name]) for name, value in run.state.model.named_parameters())

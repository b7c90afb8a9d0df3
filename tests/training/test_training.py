"""Training in one process: the run folder, stopping and resuming, micro-batches, configuration, refusals."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

import deformable_detr as dd
from deformable_detr.cli import main
from deformable_detr.config import RunConfig, from_dict, override, to_dict
from deformable_detr.errors import NonFiniteError, TrainingInterruptedError, UserError
from deformable_detr.evaluation import evaluate
from deformable_detr.files import DRAFTS
from deformable_detr.loss import Losses, SetCriterion
from deformable_detr.training import run as training
from deformable_detr.training.optimisation import learning_rate_factor
from deformable_detr.training.run import resolve_config, train
from tests.support.drafts import leave_draft
from tests.support.tiny import (
    IMAGE_SIZE,
    as_detr,
    assert_same_movement,
    assert_same_run,
    changed_data,
    repeatable_in_parts,
    rows,
    state,
    tiny_config,
    weights,
)

pytestmark = pytest.mark.usefixtures("one_thread")

UPDATES_PER_EPOCH, UPDATES = 6, 12


@pytest.fixture(scope="module")
def whole(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """A run that was never stopped."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    train(tiny_data, tiny_config(), run)
    return run


def before_update(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], None]) -> None:
    """Act at the start of update `number` (from 1), once."""
    waiting = [True]

    def factor(config: Any, step: int, steps_per_epoch: int) -> float:
        if step == number - 1 and waiting:
            waiting.clear()
            act()
        return learning_rate_factor(config, step, steps_per_epoch)

    monkeypatch.setattr(training, "learning_rate_factor", factor)


class CrashError(Exception):
    """Stands for a power cut."""


def crash(*args: Any, **kwargs: Any) -> Any:
    raise CrashError


# ---------------------------------------------------------------------- the run folder


def test_run_folder(whole: Path, tiny_data: Path) -> None:
    config = from_dict(RunConfig, yaml.safe_load((whole / "config.yaml").read_text()))
    assert config == replace(tiny_config(), model=replace(tiny_config().model, num_classes=6))
    assert {path.name for path in (whole / "checkpoints").iterdir()} == {"last", "best"}
    assert list(whole.glob("events.out.tfevents.*"))
    assert not list(whole.rglob(f"{DRAFTS}*"))
    assert state(whole)["step"] == UPDATES


def test_metrics_rows(whole: Path) -> None:
    train_rows, evaluation_rows = rows(whole, "train"), rows(whole, "evaluation")
    assert [row["step"] for row in train_rows] == list(range(1, UPDATES + 1))
    assert [row["epoch"] for row in train_rows] == [0] * UPDATES_PER_EPOCH + [1] * UPDATES_PER_EPOCH
    for row in train_rows:
        assert {"loss", "class", "box", "giou", "class_0", "gradient_norm"} <= set(row)
        assert row["images_per_second"] > 0
        assert set(row["learning_rate"]) == {"base", "backbone", "sampling"}
        numbers = [*row["learning_rate"].values(), *(v for v in row.values() if isinstance(v, float))]
        assert all(math.isfinite(number) for number in numbers)
    assert [row["step"] for row in evaluation_rows] == [6, 12]
    assert {"AP", "AP50", "per_class"} <= set(evaluation_rows[0])


def test_the_schedule_reaches_the_optimizer(whole: Path) -> None:
    settings = tiny_config().train
    for row in rows(whole, "train"):
        factor = learning_rate_factor(settings, row["step"] - 1, UPDATES_PER_EPOCH)
        assert row["learning_rate"]["base"] == pytest.approx(settings.lr * factor)
        assert row["learning_rate"]["backbone"] == pytest.approx(settings.lr_backbone * factor)


def test_the_returned_detector_is_the_one_of_the_folder(tiny_data: Path, tmp_path: Path) -> None:
    detector = train(tiny_data, tiny_config(max_steps=2), tmp_path / "run")
    loaded = dd.load(tmp_path / "run")
    assert detector.classes == loaded.classes
    assert detector.classes.names[0] == "circle"
    assert (detector.config, detector.data, detector.recipe) == (loaded.config, loaded.data, loaded.recipe)
    image = next((tiny_data / "val").iterdir())
    found, again = detector.predict(image, threshold=0.0), loaded.predict(image, threshold=0.0)
    assert found.image_size == IMAGE_SIZE
    assert len(found) > 0
    np.testing.assert_array_equal(found.boxes_xyxy, again.boxes_xyxy)
    np.testing.assert_array_equal(found.scores, again.scores)


def test_best_is_the_checkpoint_of_the_highest_ap(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.2, 0.5, 0.3])
    seen = []

    def scored(detector: dd.Detector, *args: Any, **kwargs: Any) -> dict[str, Any]:
        seen.append({key: value.clone() for key, value in detector.model.state_dict().items()})
        return evaluate(detector, *args, **kwargs) | {"AP": next(scores)}

    monkeypatch.setattr(training, "evaluate", scored)
    detector = train(tiny_data, tiny_config(epochs=3, batch_size=6), tmp_path / "run")
    for name, index in (("best", 1), ("last", 2)):
        for key, value in weights(tmp_path / "run", name).items():
            assert torch.equal(value, seen[index][key])
    assert torch.equal(detector.model.queries.positions, seen[1]["queries.positions"])


def test_without_validation_split(tiny_data: Path, tmp_path: Path) -> None:
    data = changed_data(tiny_data, tmp_path / "data", lambda content: None)
    (data / "annotations" / "instances_val.json").unlink()
    detector = train(data, tiny_config(epochs=1, batch_size=6), tmp_path / "run")
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"last"}
    assert rows(tmp_path / "run", "evaluation") == []
    last = weights(tmp_path / "run")
    assert torch.equal(detector.model.state_dict()["queries.positions"], last["queries.positions"])


def test_evaluates_on_a_split_called_validation(tiny_data: Path, tmp_path: Path) -> None:
    data = changed_data(tiny_data, tmp_path / "data", lambda content: None)
    (data / "annotations" / "instances_val.json").rename(data / "annotations" / "instances_validation.json")
    (data / "val").rename(data / "validation")
    train(data, tiny_config(max_steps=1), tmp_path / "run")
    assert len(rows(tmp_path / "run", "evaluation")) == 1


def test_no_updates_asked_for(tiny_data: Path, tmp_path: Path) -> None:
    train(tiny_data, tiny_config(max_steps=0), tmp_path / "run")
    assert state(tmp_path / "run")["step"] == 0
    assert weights(tmp_path / "run").keys()


def test_images_without_objects(tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = changed_data(tiny_data, tmp_path / "data", lambda content: content["annotations"].clear())
    for config in (tiny_config(max_steps=2), as_detr(tiny_config(max_steps=2))):
        run = tmp_path / config.model.attention
        train(data, config, run)
        for row in rows(run, "train"):
            assert row["box"] == row["giou"] == 0
            assert math.isfinite(row["loss"])
    assert "no object in the training images: nothing can be learned" in capsys.readouterr().out


def test_splits_without_a_common_class_are_refused_at_once(tiny_data: Path, tmp_path: Path) -> None:
    data = changed_data(tiny_data, tmp_path / "data", lambda content: None)
    path = data / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    for number, category in enumerate(content["categories"]):
        category["name"] = f"other {number}"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"have no class in common: give both splits the same class names"):
        train(data, tiny_config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------- stopping and resuming


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resumed_after_a_crash(
    whole: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    config = tiny_config(checkpoint_every=4, num_workers=num_workers)
    with monkeypatch.context() as patch:
        before_update(patch, 10, crash)
        with pytest.raises(CrashError):
            train(tiny_data, config, tmp_path / "run")
    assert state(tmp_path / "run")["step"] == 8  # in the middle of the second epoch
    assert len(rows(tmp_path / "run", "train")) == 9
    left = [
        leave_draft(tmp_path / "run" / "training_state.pt"),
        leave_draft(tmp_path / "run" / "checkpoints" / "best"),
    ]
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "ep')
    train(tiny_data, None, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", whole)
    assert not any(drafts.exists() for drafts in left)


@pytest.mark.parametrize("moment", [3, 5, 11])
def test_resumed_after_a_signal(
    whole: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    # A signal during update 5 stops after update 6, the end of the epoch, which was not evaluated yet;
    # a signal during update 11 after the last one.
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        before_update(patch, moment, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(TrainingInterruptedError, match=f"stopped after update {moment + 1} of 12.*--res"):
            train(tiny_data, tiny_config(), run)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert state(run)["step"] == moment + 1
    train(tiny_data, None, run, resume=True)
    assert_same_run(run, whole)


def test_resumed_after_a_crash_in_the_evaluation(
    whole: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(training, "evaluate", crash)
        with pytest.raises(CrashError):
            train(tiny_data, tiny_config(), tmp_path / "run")
    assert state(tmp_path / "run")["step"] == UPDATES_PER_EPOCH  # saved before it was evaluated
    train(tiny_data, None, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", whole)


def test_resumed_after_a_crash_between_evaluation_and_saving(
    whole: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(training._Run, "_save_checkpoint", crash)
        with pytest.raises(CrashError):
            train(tiny_data, tiny_config(checkpoint_every=3), tmp_path / "run")
    assert len(rows(tmp_path / "run", "evaluation")) == 1
    train(tiny_data, None, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", whole)


def test_resumed_with_more_updates(whole: Path, tiny_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny_data, tiny_config(max_steps=4), run)
    train(tiny_data, None, run, resume=True, max_steps=None)
    theirs = weights(whole)
    assert all(torch.equal(value, theirs[key]) for key, value in weights(run).items())
    assert [row["loss"] for row in rows(run, "train")] == [row["loss"] for row in rows(whole, "train")]
    assert [row["step"] for row in rows(run, "evaluation")] == [4, 6, 12]  # the end of the first part, too


def test_resuming_a_finished_run_changes_nothing(tiny_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny_data, tiny_config(max_steps=2), run)
    before = (run / "metrics.jsonl").read_text(), weights(run)
    train(tiny_data, None, run, resume=True)
    assert (run / "metrics.jsonl").read_text() == before[0]
    assert all(torch.equal(value, before[1][key]) for key, value in weights(run).items())


def test_changed_learning_rate_is_used_after_resuming(tiny_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny_data, tiny_config(max_steps=4, schedule="step"), run)
    train(tiny_data, None, run, resume=True, max_steps=5, lr=0.003, weight_decay=0.5)
    assert rows(run, "train")[-1]["learning_rate"]["base"] == pytest.approx(0.003)
    assert {group["weight_decay"] for group in state(run)["optimizer"]["param_groups"]} == {0.5}
    assert yaml.safe_load((run / "config.yaml").read_text())["train"]["lr"] == 0.003


def test_resuming_detr(tiny_data: Path, tmp_path: Path) -> None:
    # Its configuration, field by field on top of the default one, passes through impossible models.
    train(tiny_data, as_detr(tiny_config(max_steps=1)), tmp_path / "run")
    train(tiny_data, None, tmp_path / "run", resume=True, max_steps=2)
    assert state(tmp_path / "run")["step"] == 2


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"batch_size": 3}, "made with 2 images per update, now there are 3"),
        ({"num_queries": 12}, "the model differs from the one in .*queries.*same model settings"),
        ({"model.backbone.trainable_layers": 1}, "the model differs from the one in .*same model settings"),
    ],
)
def test_resume_refuses_another_run(
    whole: Path, tiny_data: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence) as refusal:
        train(tiny_data, None, whole, resume=True, **changes)
    assert "\n" not in str(refusal.value)


def test_resume_refuses_other_data(whole: Path, tiny_data: Path, tmp_path: Path) -> None:
    def without_last_image(content: dict[str, Any]) -> None:
        last = content["images"].pop()["id"]
        content["annotations"] = [row for row in content["annotations"] if row["image_id"] != last]

    def renamed(content: dict[str, Any]) -> None:
        content["categories"][0]["name"] = "disc"

    for index, change in enumerate((without_last_image, renamed)):
        data = changed_data(tiny_data, tmp_path / f"{index}", change)
        with pytest.raises(UserError, match=r"--resume: the data differ from those of the run"):
            train(data, None, whole, resume=True)


def test_resume_needs_a_checkpoint(tiny_data: Path, tmp_path: Path) -> None:
    for recipe in (None, "deformable_detr_lite", tiny_config()):
        with pytest.raises(UserError, match="holds no checkpoint to go on from"):
            train(tiny_data, recipe, tmp_path / "nothing", resume=True)
    assert not (tmp_path / "nothing").exists()


def test_resume_refuses_a_damaged_state(tiny_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny_data, tiny_config(max_steps=1), run)
    (run / "training_state.pt").write_bytes((run / "training_state.pt").read_bytes()[:5000])
    with pytest.raises(UserError, match=r"training_state.pt cannot be read"):
        train(tiny_data, None, run, resume=True)


def test_a_run_is_not_overwritten(whole: Path, tiny_data: Path) -> None:
    with pytest.raises(UserError, match="already holds a run: add --resume"):
        train(tiny_data, tiny_config(), whole)


def test_command_line_refusals(
    whole: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, sentence in (
        (["--resume", "--output", str(tmp_path / "nothing")], "holds no checkpoint"),
        (["--recipe", "deformable_detr_lite", "--output", str(whole)], "already holds a run"),
        (["--resume", "--output", str(whole), "--train.batch_size", "3"], "images per update"),
        (["--recipe", "deformable_detr_r5"], "there is no recipe deformable_detr_r5"),
    ):
        assert main(["train", str(tiny_data), *arguments]) == 2
        error = capsys.readouterr().err
        assert sentence in error
        assert error.count("\n") == 1


# ---------------------------------------------------------------------- micro-batches


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


def some_images_empty(content: dict[str, Any]) -> None:
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] % 3]


# ---------------------------------------------------------------------- configuration


def test_recipe_below_file_below_overrides(tiny_data: Path, tmp_path: Path) -> None:
    content = to_dict(tiny_config(max_steps=0))
    content["train"] |= {"lr": 0.01, "seed": 5}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    train(tiny_data, "deformable_detr_lite", tmp_path / "python", config=path, seed=6)
    arguments = ["--recipe", "deformable_detr_lite", "--config", str(path), "--train.seed", "6"]
    assert main(["train", str(tiny_data), *arguments, "--output", str(tmp_path / "command")]) == 0
    for run in ("python", "command"):
        written = yaml.safe_load((tmp_path / run / "config.yaml").read_text())
        assert written["train"]["seed"] == 6
        assert written["train"]["lr"] == 0.01
        assert written["train"]["schedule"] == "cosine"
        assert written["model"]["num_queries"] == 10
        assert written["recipe"] == "deformable_detr_lite"


def test_a_file_can_name_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("recipe: deformable_detr_lite\ntrain: {epochs: 3}")
    config = resolve_config(None, tmp_path, config=path)
    assert config == override(training.recipe_of("deformable_detr_lite"), {"train.epochs": 3})
    with pytest.raises(UserError, match=r"run.yaml is for recipe deformable_detr_lite, not for detr_r50"):
        resolve_config("detr_r50", tmp_path, config=path)


def test_a_file_may_change_the_family(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    wanted = training.recipe_of("detr_r50")
    path.write_text(yaml.safe_dump({"model": to_dict(wanted.model)}))
    assert resolve_config("deformable_detr_r50", tmp_path, config=path).model == wanted.model


def test_a_whole_configuration_and_a_file(tiny_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("train: {max_steps: 0}")
    train(tiny_data, tiny_config(), tmp_path / "run", config=path)
    assert state(tmp_path / "run")["step"] == 0


def test_resume_takes_a_file_on_top_and_refuses_another_recipe(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("train: {epochs: 9}")
    config = resolve_config("deformable_detr_lite", whole, config=path, resume=True)
    assert (config.train.epochs, config.model.num_queries) == (9, 10)
    with pytest.raises(UserError, match=r"whole is a run of deformable_detr_lite, not of detr_r50"):
        resolve_config("detr_r50", whole, resume=True)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("train: {learning_rate: 1}", r"run.yaml.*train\.learning_rate"),
        ("trian: {lr: 1}", "run.yaml.*trian"),
        ("- 1", "run.yaml holds no configuration"),
        ("a: [", "run.yaml cannot be read as a YAML"),
        ("train: 3", "run.yaml.*train"),
    ],
)
def test_a_file_is_refused_by_name(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(UserError, match=sentence) as refusal:
        resolve_config("deformable_detr_lite", tmp_path, config=tmp_path / "run.yaml")
    assert "\n" not in str(refusal.value)


def test_unknown_overrides_are_refused_by_name(tiny_data: Path, tmp_path: Path) -> None:
    for name in ("learning_rate", "train.learning_rate", "model.backbone.names"):
        with pytest.raises(UserError, match=name):
            train(tiny_data, tiny_config(), tmp_path / "run", **{name: 1})


def test_the_number_of_classes_is_the_data_s(tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"num_classes is 7, but .* has 6 classes"):
        train(tiny_data, tiny_config(num_classes=7), tmp_path / "run")
    detector = train(tiny_data, tiny_config(num_classes=6, max_steps=0), tmp_path / "run")
    assert detector.config.num_classes == 6


# ---------------------------------------------------------------------- starting from a model


def test_init_from_brings_recipe_architecture_and_preprocessing(
    whole: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = resolve_config(None, tmp_path / "run", init_from=whole)
    assert config.recipe == "deformable_detr_lite"
    assert replace(config.model, num_classes=6) == dd.load(whole).config
    assert (config.data.image_size, config.data.train_sizes) == (64, (48, 64))

    def other_classes(content: dict[str, Any]) -> None:
        content["categories"][1]["name"] = "box"

    data = changed_data(tiny_data, tmp_path / "data", other_classes)
    detector = train(data, None, tmp_path / "run", init_from=whole, max_steps=0, ema_decay=0.0)
    said = capsys.readouterr().out
    assert "5 classes taken over" in said
    assert "1 classes start fresh: box" in said
    start, source = detector.model.state_dict(), weights(whole, "best")
    for key, value in source.items():
        rows_taken = [0, 2, 3, 4, 5] if ".class_head." in key else slice(None)
        assert torch.equal(start[key][rows_taken], value[rows_taken]), key


def test_init_from_refuses_another_architecture(whole: Path, tiny_data: Path, tmp_path: Path) -> None:
    for changes in ({"hidden_dim": 64}, {"ffn_dim": 32}, {"num_points": 4}):
        with pytest.raises(UserError, match=r"--init-from: the model differs .*leave --recipe out"):
            train(tiny_data, tiny_config(**changes), tmp_path / "run", init_from=whole)


# ---------------------------------------------------------------------- numbers that are none


@pytest.fixture
def broken(whole: Path, tmp_path: Path) -> Path:
    """A model whose class heads say NaN."""
    detector = dd.load(whole)
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


# ---------------------------------------------------------------------- precision and device


def test_bfloat16_after_float32(tiny_data: Path, tmp_path: Path) -> None:
    # In one Python session: Accelerate's state is a singleton that refuses a second precision.
    train(tiny_data, tiny_config(max_steps=1), tmp_path / "fp32")
    train(tiny_data, tiny_config(max_steps=3, precision="bf16"), tmp_path / "bf16")
    assert all(math.isfinite(row["loss"]) for row in rows(tmp_path / "bf16", "train"))
    assert {value.dtype for value in weights(tmp_path / "bf16").values()} == {torch.float32}
    reference, rounded = (rows(tmp_path / name, "train")[0]["loss"] for name in ("fp32", "bf16"))
    assert rounded != reference
    assert rounded == pytest.approx(reference, rel=0.05)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_what_a_cpu_cannot_do(tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fp16 needs a GPU: use bf16 or fp32"):
        train(tiny_data, tiny_config(precision="fp16"), tmp_path / "run")
    with pytest.raises(UserError, match="there is no device cuda"):
        train(tiny_data, tiny_config(), tmp_path / "run", device="cuda")
    assert not (tmp_path / "run").exists()


def test_frozen_backbone(tiny_data: Path, tmp_path: Path) -> None:
    train(tiny_data, tiny_config(max_steps=0, ema_decay=0.0), tmp_path / "start")
    train(tiny_data, tiny_config(max_steps=3, ema_decay=0.0, lr_backbone=0.0), tmp_path / "run")
    before = weights(tmp_path / "start")
    moved = {key for key, value in weights(tmp_path / "run").items() if not torch.equal(value, before[key])}
    assert moved
    assert not any(key.startswith("backbone.") for key in moved)
    assert set(rows(tmp_path / "run", "train")[0]["learning_rate"]) == {"base", "sampling"}


def test_metrics_file_is_json(whole: Path) -> None:
    for line in (whole / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@pytest.mark.parametrize(
    ("config", "changed"),
    [
        (tiny_config(epochs=1, max_steps=1, log_every=1), {"focal_alpha": 0.9}),
        (as_detr(tiny_config(epochs=1, max_steps=1, log_every=1)), {"no_object_weight": 1.0}),
    ],
    ids=["focal", "softmax"],
)
def test_settings_of_the_class_loss_reach_the_loss(
    tiny_data: Path, tmp_path: Path, config: RunConfig, changed: dict[str, float]
) -> None:
    train(tiny_data, config, tmp_path / "a")
    train(tiny_data, config, tmp_path / "b", **changed)
    first, second = (rows(tmp_path / name, "train")[0]["class"] for name in ("a", "b"))
    assert first != second

"""Stopping and resuming: the same bits as a run that was never stopped, or a refusal in one sentence."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from deformable_detr.errors import TrainingInterruptedError, UserError
from deformable_detr.training import run as training
from deformable_detr.training import train
from deformable_detr.training.parts import Parts
from tests.support.drafts import leave_draft
from tests.support.interrupted import CrashError, before_update, crash
from tests.support.tiny import (
    as_detr,
    assert_same_run,
    changed_data,
    rows,
    state,
    tiny_config,
    weights,
)

pytestmark = pytest.mark.usefixtures("one_thread")

UPDATES_PER_EPOCH, UPDATES = 6, 12


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resumed_after_a_crash(
    whole_run: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_workers: int
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
    assert_same_run(tmp_path / "run", whole_run)
    assert not any(drafts.exists() for drafts in left)


def test_resume_auto_starts_a_run_and_continues_it(
    whole_run: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attempt() -> None:
        train(tiny_data, tiny_config(checkpoint_every=4), tmp_path / "run", resume="auto")

    for moment in (3, 6):  # before a state was saved, and after
        with monkeypatch.context() as patch:
            before_update(patch, moment, crash)
            with pytest.raises(CrashError):
                attempt()
    attempt()
    assert_same_run(tmp_path / "run", whole_run)
    finished = state(tmp_path / "run")
    attempt()
    assert state(tmp_path / "run")["digest"] == finished["digest"]


def test_resume_takes_no_other_word(tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="resume must be True, False or auto, not never"):
        train(tiny_data, tiny_config(), tmp_path / "run", resume="never")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("moment", [4, 6, 12])
def test_resumed_after_a_signal(
    whole_run: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    # Update 6 ends an epoch, which was not evaluated yet; update 12 is the last one.
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        before_update(patch, moment, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(TrainingInterruptedError, match=f"stopped after update {moment} of 12.*--res"):
            train(tiny_data, tiny_config(), run)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert state(run)["step"] == moment
    train(tiny_data, None, run, resume=True)
    assert_same_run(run, whole_run)


def test_resumed_after_a_crash_in_the_evaluation(
    whole_run: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(training, "evaluate", crash)
        with pytest.raises(CrashError):
            train(tiny_data, tiny_config(), tmp_path / "run")
    assert state(tmp_path / "run")["step"] == UPDATES_PER_EPOCH  # saved before it was evaluated
    train(tiny_data, None, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", whole_run)


def test_resumed_after_a_crash_between_evaluation_and_saving(
    whole_run: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Parts, "save_checkpoint", crash)
        with pytest.raises(CrashError):
            train(tiny_data, tiny_config(checkpoint_every=3), tmp_path / "run")
    assert len(rows(tmp_path / "run", "evaluation")) == 1
    train(tiny_data, None, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", whole_run)


def test_resumed_with_more_updates(whole_run: Path, tiny_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny_data, tiny_config(max_steps=4), run)
    train(tiny_data, None, run, resume=True, max_steps=None)
    theirs = weights(whole_run)
    assert all(torch.equal(value, theirs[key]) for key, value in weights(run).items())
    assert [row["loss"] for row in rows(run, "train")] == [row["loss"] for row in rows(whole_run, "train")]
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
        ({"batch_size": 3}, "2 images per update, now there are 3"),
        ({"num_queries": 12}, "the model differs from the one in .*queries.*same model settings"),
        ({"model.backbone.trainable_layers": 1}, "the model differs from the one in .*same model settings"),
    ],
)
def test_resume_refuses_another_run(
    whole_run: Path, tiny_data: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence) as refusal:
        train(tiny_data, None, whole_run, resume=True, **changes)
    assert "\n" not in str(refusal.value)


def test_resume_refuses_other_data(whole_run: Path, tiny_data: Path, tmp_path: Path) -> None:
    def without_last_image(content: dict[str, Any]) -> None:
        last = content["images"].pop()["id"]
        content["annotations"] = [row for row in content["annotations"] if row["image_id"] != last]

    def renamed(content: dict[str, Any]) -> None:
        content["categories"][0]["name"] = "disc"

    for index, change in enumerate((without_last_image, renamed)):
        data = changed_data(tiny_data, tmp_path / f"{index}", change)
        with pytest.raises(UserError, match=r"--resume: the data differ from those of the run"):
            train(data, None, whole_run, resume=True)


def test_resume_needs_a_checkpoint(tiny_data: Path, tmp_path: Path) -> None:
    for recipe in (None, "deformable_detr_lite", tiny_config()):
        with pytest.raises(UserError, match="contains no training state"):
            train(tiny_data, recipe, tmp_path / "nothing", resume=True)
    assert not (tmp_path / "nothing").exists()


def test_resume_refuses_a_state_with_one_other_byte(tiny_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny_data, tiny_config(max_steps=1), run)
    file = run / "training_state.pt"
    content = bytearray(file.read_bytes())
    weight = max((each for each in state(run)["model"].values() if each.ndim == 2), key=torch.Tensor.numel)
    place = content.index(weight.numpy().tobytes())
    content[place + 1] ^= 1
    file.write_bytes(content)
    state(run)  # PyTorch does not notice
    with pytest.raises(UserError, match=r"training_state.pt is not as it was written"):
        train(tiny_data, None, run, resume=True)


def test_resume_refuses_a_damaged_state(tiny_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny_data, tiny_config(max_steps=1), run)
    (run / "training_state.pt").write_bytes((run / "training_state.pt").read_bytes()[:5000])
    with pytest.raises(UserError, match=r"training_state.pt cannot be read"):
        train(tiny_data, None, run, resume=True)


def test_resume_refuses_the_state_of_an_older_version(tiny_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny_data, tiny_config(max_steps=1), run)
    content = state(run)
    del content["format"]
    torch.save(content, run / "training_state.pt")
    with pytest.raises(UserError, match=r"training_state.pt .*another version.*--init-from .*run"):
        train(tiny_data, None, run, resume=True)


def test_resume_refuses_a_file_that_is_no_state(tiny_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny_data, tiny_config(max_steps=1), run)
    torch.save([1, 2], run / "training_state.pt")
    with pytest.raises(UserError, match=r"training_state.pt is not a training state"):
        train(tiny_data, None, run, resume=True)


def test_an_ap_that_does_not_exist_is_not_the_best(tiny_data: Path, tmp_path: Path) -> None:
    data = changed_data(tiny_data, tmp_path / "data", lambda content: None)
    path = data / "annotations" / "instances_val.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"annotations": []}))
    train(data, tiny_config(max_steps=1), tmp_path / "run")
    assert rows(tmp_path / "run", "evaluation")[0]["AP"] == -1
    assert state(tmp_path / "run")["best_ap"] is None
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"last"}

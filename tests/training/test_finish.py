"""The end of a run: the best weights get thresholds from the split that is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import deformable_detr as dd
from deformable_detr import checkpoint
from deformable_detr.checkpoint import Decision
from deformable_detr.data.records import Split
from deformable_detr.errors import UserError
from deformable_detr.evaluation import ground_truth_of
from deformable_detr.inference.detector import Detector
from deformable_detr.run_folder.names import REPORT_PAGE
from deformable_detr.training import finish as module
from deformable_detr.training import train
from tests.support.tiny import changed_data, tiny_config

pytestmark = pytest.mark.usefixtures("one_thread")


def perfect(detector: Detector, split: Split, **_: Any) -> list[dict[str, Any]]:
    """Stand in for `collect_detections`: every object at 0.8, and for each one nothing at 0.3."""
    rows = []
    for truth in ground_truth_of(split)["annotations"]:
        row = {name: truth[name] for name in ("image_id", "category_id", "bbox")}
        rows += [{**row, "score": 0.8}, {**row, "bbox": [0.0, 0.0, 1.0, 1.0], "score": 0.3}]
    return rows


def train_perfectly(monkeypatch: pytest.MonkeyPatch, data: Path, run: Path, **changes: Any) -> Detector:
    monkeypatch.setattr(module, "collect_detections", perfect)
    return train(data, tiny_config(max_steps=1, **changes), run)


def test_the_best_weights_get_thresholds(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    detector = train_perfectly(monkeypatch, tiny_data, tmp_path / "run", report=True)
    said = capsys.readouterr().out
    loaded = dd.load(tmp_path / "run")
    assert isinstance(loaded.decision, Decision)
    assert detector.decision == loaded.decision
    own = [
        threshold
        for threshold, basis in zip(loaded.decision.thresholds, loaded.decision.bases, strict=True)
        if basis == "own"
    ]
    assert own == pytest.approx([0.55] * len(own))  # of 0.31 to 0.80
    assert own
    assert (loaded.decision.rule, loaded.decision.split, loaded.decision.images) == ("best_f1", "val", 6)
    assert "best F1 on val" in said
    assert "val is also the split that is measured" in said
    report = (tmp_path / "run" / REPORT_PAGE).read_text(encoding="utf-8")
    assert "threshold of the model" in report
    assert "were chosen on this split" in report
    assert "--threshold" not in report  # the commands need none


def test_the_rule_of_the_configuration(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = train_perfectly(monkeypatch, tiny_data, tmp_path / "run", precision_at_least=0.4)
    assert detector.decision is not None
    assert detector.decision.rule == 0.4
    assert detector.selection().by_class["star"] == pytest.approx(0.15)  # of 0.01 to 0.30: half are right
    with pytest.raises(UserError, match=r"train\.precision_at_least must be above 0 and at most 1, or null"):
        tiny_config(precision_at_least=1.5)


def test_a_resumed_run_decides_again(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    train_perfectly(monkeypatch, tiny_data, run)
    config = run / "checkpoints" / "best" / "config.json"
    decided = config.read_text()
    content = json.loads(decided)
    del content["decision"]  # as if the run had been killed before
    config.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    train(tiny_data, tiny_config(max_steps=1), run, resume=True)
    assert config.read_text() == decided
    train(tiny_data, tiny_config(max_steps=2), run, resume=True)
    assert dd.load(run).decision is not None


def test_without_a_right_detection_there_are_no_thresholds(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "collect_detections", lambda *_, **__: [])
    assert train(tiny_data, tiny_config(max_steps=1), tmp_path / "run").decision is None
    assert "No detection on val is right" in capsys.readouterr().out
    assert dd.load(tmp_path / "run").decision is None


def test_without_another_split_some_training_pictures_serve(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = changed_data(tiny_data, tmp_path / "data", lambda content: None)
    (data / "annotations" / "instances_val.json").unlink()
    monkeypatch.setattr(module, "MAX_TRAINING_IMAGES", 5)
    detector = train_perfectly(monkeypatch, data, tmp_path / "run", report=True)
    assert detector.decision is not None
    assert (detector.decision.split, detector.decision.images) == ("train", 4)  # every third of 12
    said = capsys.readouterr().out
    assert "no split val or test" in said
    assert "4 pictures that the model was trained on" in said
    report = (tmp_path / "run" / REPORT_PAGE).read_text(encoding="utf-8")
    assert "not measured" in report


def test_a_failure_is_no_failure_of_the_run(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(module, "collect_detections", fail)
    assert train(tiny_data, tiny_config(max_steps=1), tmp_path / "run").decision is None
    said = capsys.readouterr().out
    assert "the disk is gone" in said
    assert "--decide best_f1" in said


@pytest.mark.parametrize("error", [UserError("model.safetensors is damaged"), MemoryError("of 9 GB")])
def test_best_weights_that_cannot_be_read_are_reported_and_can_be_tried_again(
    error: Exception, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Path) -> None:
        raise error

    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "load", fail)
        with pytest.raises(UserError) as raised:
            train_perfectly(patched, tiny_data, run)
    for fact in (f"{run} is finished and saved", str(error), "--resume"):
        assert fact in str(raised.value)
    best = (run / "checkpoints" / "best" / "model.safetensors").read_bytes()
    detector = train(tiny_data, tiny_config(max_steps=1), run, resume=True)
    assert detector.decision == dd.load(run).decision
    assert (run / "checkpoints" / "best" / "model.safetensors").read_bytes() == best

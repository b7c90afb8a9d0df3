"""The demo, cut down to seconds: every step of it, and what it leaves behind."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from deformable_detr.cli import demo as module
from deformable_detr.cli import main
from deformable_detr.cli.demo import demo_config
from deformable_detr.evaluation.average_precision import COCO_METRICS
from deformable_detr.run_folder.log import TrainingLog
from tests.support.tiny import tiny_config


def test_the_whole_way(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "demo_config", lambda: tiny_config(report=True))
    for name, value in {
        "TRAIN_IMAGES": 4,
        "VAL_IMAGES": 3,
        "SHOWN_IMAGES": 2,
        "IMAGE_SIZE": (64, 80),
    }.items():
        monkeypatch.setattr(module, name, value)
    out = tmp_path / "demo"
    assert main(["demo", "--output", str(out), "--epochs", "1"]) == 0

    said = capsys.readouterr().out
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics.keys() >= set(COCO_METRICS)
    assert isinstance(json.loads((out / "predictions" / "predictions.json").read_text()), list)
    assert len(list((out / "predictions").glob("*.jpg"))) == 2
    assert (out / "run" / "checkpoints" / "last" / "model.safetensors").is_file()
    for path in ("predictions", "predictions/predictions.json", "metrics.json", "run", "run/report.html"):
        assert (out / path).exists()
        assert str(out / path) in said
    assert f"AP50 {metrics['AP50']:.3f}" in said

    assert main(["demo", "--output", str(out)]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_a_stopped_demo_explains_how_to_continue(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name, value in {"TRAIN_IMAGES": 4, "VAL_IMAGES": 2, "IMAGE_SIZE": (64, 80)}.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module, "demo_config", lambda: tiny_config(batch_size=1, evaluate_every=9))
    out = tmp_path / "demo"
    written = TrainingLog.update

    def stop(self: TrainingLog, **row: Any) -> None:
        written(self, **row)
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLog, "update", stop)
        assert main(["demo", "--output", str(out), "--epochs", "1"]) == 130
    said = " ".join(capsys.readouterr().err.split())
    assert f"Remove {out} to start the demo again" in said
    advised = said.partition("`deformable-detr ")[2].partition("`")[0].split()
    assert main([*advised, "--train.report=false"]) == 0


def test_an_output_that_cannot_be_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "demo"):
        assert main(["demo", "--output", str(output)]) == 2
        assert str(output) in capsys.readouterr().err


def test_its_configuration_is_the_lite_recipe_for_minutes() -> None:
    config = demo_config()
    assert config.recipe == "deformable_detr_lite"
    assert config.train.epochs <= 20

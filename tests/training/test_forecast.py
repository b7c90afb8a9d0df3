"""The forecast measures training's own updates, in a process of its own, and leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from deformable_detr.errors import UserError
from deformable_detr.inspection import Forecast, inspect, print_report
from deformable_detr.inspection.terminal import duration
from deformable_detr.training import forecast as module
from deformable_detr.training.forecast import forecast
from tests.support.forecasts import MEASURED
from tests.support.tiny import (
    TRAIN_IMAGES,
    changed_data,
    tiny_config,
    write_tiny_data,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_data(tmp_path_factory.mktemp("tiny") / "data")


def test_what_training_will_cost(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(data.rglob("*"))
    made = forecast(data, tiny_config(epochs=7), device="cpu", seconds=0.0)
    assert (made.recipe, made.batch_size, made.epochs) == ("deformable_detr_lite", 2, 7)
    assert made.updates_per_epoch == TRAIN_IMAGES // 2
    assert made.updates_measured == module.MINIMUM
    assert made.update_seconds > 0 < made.evaluation_seconds
    assert made.total_seconds == pytest.approx(7 * made.epoch_seconds)
    assert made.epoch_seconds == pytest.approx(6 * made.update_seconds + made.evaluation_seconds)
    assert 2e8 < made.peak_bytes < 2e10  # PyTorch alone takes that
    assert made.gpu_bytes == 0
    assert made.update_cpu_seconds > 0
    assert made.largest_batch == (64, 80)  # the largest training size, 64, of pictures of 64 x 80
    assert list(tmp_path.iterdir()) == []
    assert sorted(data.rglob("*")) == before


def test_what_training_would_refuse(data: Path, tmp_path: Path) -> None:
    broken = changed_data(data, tmp_path / "broken", lambda content: content["images"][0].update(width=99))
    with pytest.raises(UserError, match=r"no forecast: .* has 80 x 64 pixels"):
        forecast(broken, tiny_config(), device="cpu", seconds=0.0)


def test_a_process_that_is_killed(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = subprocess.run

    def killed(arguments: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
        return run([sys.executable, "-c", code], **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(module.subprocess, "run", killed)
    with pytest.raises(UserError, match=r"was killed by the system .* lack of memory"):
        forecast(data, tiny_config())


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(2.34, "2.3 s"), (34.5, "34 s"), (600, "10 min"), (9000, "2.5 h"), (400_000, "4.6 days")],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_the_forecast_in_words(data: Path) -> None:
    report = replace(inspect(data, images="no"), forecast=MEASURED)

    def printed(forecast: Forecast) -> str:
        console = Console(file=StringIO(), width=80)
        print_report(replace(report, forecast=forecast), console)
        assert isinstance(console.file, StringIO)
        return " ".join(console.file.getvalue().split())

    text = printed(MEASURED)
    assert "busy:" not in text
    crowded = printed(replace(MEASURED, load=14.0, update_seconds=10.0, threads=2))
    assert "took 2.00 s of processor time, so when idle it may be up to 10 times as fast" in crowded
    assert "An epoch takes 2 min on the CPU: 30 updates of 2.00 s (±0.10; 4 images each)" in text
    assert "and 40 s of evaluation. All 6 epochs of deformable_detr_lite: 10 min." in text
    assert "1.5 GB of memory" in text
    assert "a batch of 363 x 272 pixels" in text
    assert report.to_dict()["forecast"]["total_seconds"] == 600

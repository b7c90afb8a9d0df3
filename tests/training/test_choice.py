"""The recipe of a run for which none is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deformable_detr.cli import main
from deformable_detr.config import RunConfig, recipe
from deformable_detr.errors import UserError
from deformable_detr.inspection import Forecast
from deformable_detr.training import choice, resolve_config
from deformable_detr.training import forecast as forecast_module
from tests.support.forecasts import MEASURED
from tests.support.tiny import tiny_config


@pytest.mark.parametrize(
    ("gpu", "device", "name"),
    [
        (False, "auto", "deformable_detr_lite"),
        (True, "auto", "deformable_detr_r50_two_stage"),
        (True, "cpu", "deformable_detr_lite"),
    ],
)
def test_the_device_chooses(
    gpu: bool, device: str, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    assert resolve_config(None, tmp_path, device=device) == recipe(name)


def first_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    measured: Any = MEASURED,
) -> str:
    """Return what `train` says first, if its updates were those of `measured`."""
    seen = []

    def forecast(data: Any, config: RunConfig, **_: Any) -> Forecast:
        seen.append(config)
        if isinstance(measured, Exception):
            raise measured
        return measured

    def tiny_recipe(name: str) -> RunConfig:
        return tiny_config(max_steps=1)

    monkeypatch.setattr(forecast_module, "forecast", forecast)
    monkeypatch.setattr("deformable_detr.training.settings.recipe_of", tiny_recipe)
    assert main(["train", *arguments, "--device", "cpu"]) == 0
    return capsys.readouterr().out.splitlines()[0] if seen else ""


def test_the_first_line_says_what_was_chosen_and_how_long_it_takes(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(tiny_data), "--output", str(tmp_path / "run"), "--train.max_steps", "1"]
    line = first_line(monkeypatch, capsys, words)
    assert line.startswith("Training deformable_detr_lite")
    assert "deformable_detr_r50_two_stage" in line
    assert "about 3 seconds" in line  # an update, and a thirtieth of an epoch's evaluation


def test_a_named_recipe_needs_no_forecast(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text("recipe: deformable_detr_lite")
    for number, named in enumerate(
        (["--recipe", "deformable_detr_lite"], ["--config", str(tmp_path / "run.yaml")])
    ):
        words = [str(tiny_data), *named, "--output", str(tmp_path / str(number)), "--train.max_steps", "1"]
        assert first_line(monkeypatch, capsys, words) == ""


def test_training_starts_although_nothing_can_be_measured(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(tiny_data), "--output", str(tmp_path / "run"), "--train.max_steps", "1"]
    assert "could not be measured" in first_line(monkeypatch, capsys, words, UserError("no forecast: no"))


def test_a_long_run_is_forecast_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    monkeypatch.setattr(forecast_module, "forecast", lambda *_, **__: MEASURED)
    line = choice.choice_line("data", tiny_config(epochs=6), "cpu", Console(quiet=True), alone=True)
    assert "about 10 minutes" in line  # 6 epochs of 30 updates of 2 seconds and 40 seconds of evaluation
    busy = replace(MEASURED, load=9.0, update_cpu_seconds=0.5)
    monkeypatch.setattr(forecast_module, "forecast", lambda *_, **__: busy)
    line = choice.choice_line("data", tiny_config(epochs=6), "cpu", Console(quiet=True), alone=True)
    assert "up to 4 times less" in line
    several = choice.choice_line("data", tiny_config(), "cpu", Console(quiet=True), alone=False)
    assert "about" not in several

"""`benchmark train`: rivals do the same work, goals are judged as the issue states them, what is refused.

The command itself builds four models in four processes: the slow group runs it.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from deformable_detr.system import allocator
from experiments.benchmark import train
from experiments.benchmark.__main__ import main
from experiments.benchmark.measure import Timing
from experiments.benchmark.train import (
    CHECKPOINTED,
    OURS,
    PLAIN,
    TRANSFORMERS,
    Work,
    curve_difference,
    step_of,
    targets_of,
)
from tests.support.small_models import smallest_detr
from tests.support.tiny import tiny_config

pytestmark = pytest.mark.usefixtures("one_thread")


def losses(name: str, number: int = 3) -> list[float]:
    step = step_of(name, Work("tiny", (64, 96), batch=2, threads=1))
    return [step() for _ in range(number)]


@pytest.fixture(autouse=True)
def allocator_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "keep_large_buffers", lambda: True)
    assert allocator.keep_large_buffers is not train.keep_large_buffers


def test_what_was_made_faster_has_the_losses_of_the_plain_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "recipe_of", lambda name: tiny_config())
    plain = losses(PLAIN)
    assert plain[0] != plain[-1]
    for name in (OURS, CHECKPOINTED):
        assert losses(name) == pytest.approx(plain, rel=1e-4)
    assert losses(train.BF16) == pytest.approx(plain, rel=0.05)


def test_transformers_starts_from_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    # Its losses differ in details (it divides by other counts), so that only magnitudes agree.
    config = tiny_config()
    model = replace(smallest_detr(), num_classes=91, dropout=0.0)
    config = replace(config, model=model)
    monkeypatch.setattr(train, "recipe_of", lambda name: config)
    assert losses(TRANSFORMERS, 1) == pytest.approx(losses(OURS, 1), rel=0.5)


def test_goals() -> None:
    timings = {TRANSFORMERS: Timing((10.0, 11.0, 12.0)), OURS: Timing((4.0, 4.4, 9.0))}
    memory = {TRANSFORMERS: 1000, OURS: 600, CHECKPOINTED: 300}
    goals = {goal.name: goal for goal in targets_of(timings, memory)}
    assert goals["fp32, times as fast"].measured == pytest.approx(2.5)
    assert [goal.verdict for goal in goals.values()] == ["met", "not measured", "MISSED", "aim met"]
    assert {goal.verdict for goal in targets_of({OURS: timings[OURS]}, {OURS: 1, CHECKPOINTED: 1})} == {
        "not measured"
    }


def test_difference_of_curves() -> None:
    assert curve_difference({PLAIN: [2.0, 4.0], OURS: [2.0, 3.0]}) == 0.25


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--size", "480"], "--size 480: must be HEIGHTxWIDTH"),
        (["--size", "16x640"], "at least 32 pixels"),
        (["--repeats", "0"], "must be at least 1"),
        (["--recipe", "yolo"], "there is no recipe yolo"),
        (["--against", "detectron"], "no such peer"),
    ],
)
def test_refused(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *arguments]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.slow
def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "cpu_has_bfloat16", lambda: False)
    path = tmp_path / "train.json"
    small = ["--size", "64x96", "--batch", "1", "--repeats", "1", "--threads", "1"]
    assert main(["train", *small, "--output", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line.rstrip()) for line in lines if "written" not in line) <= 80
    report = json.loads(path.read_text())
    assert set(report["timings"]) >= {TRANSFORMERS, PLAIN, OURS, CHECKPOINTED}
    assert report["loss_curve_difference"] < 1e-4
    assert all(value > 0 for value in report["peak_bytes"].values())
    assert [goal["measured"] is not None for goal in report["targets"]] == [True, False, True, True]

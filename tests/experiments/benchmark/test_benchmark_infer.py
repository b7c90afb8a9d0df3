"""`benchmark infer`: rivals compute the same function, goals are as the issue states them, what is refused.

The command itself exports a model and fills five processes: the slow group runs it.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from deformable_detr.config import BackboneConfig
from deformable_detr.detections import Detections
from experiments.benchmark import infer
from experiments.benchmark.__main__ import main
from experiments.benchmark.infer import Work, export_onnx, rival, rivals_of
from experiments.benchmark.infer_tables import (
    BF16,
    COLD_PREDICT,
    HELP,
    IMPORTS,
    ONNXRUNTIME,
    OPENVINO,
    OPENVINO_BF16,
    OURS,
    PEERS,
    PLAIN,
    TOLERANCE,
    TRANSFORMERS,
    goals_of,
)
from experiments.benchmark.measure import Timing
from tests.support.small_models import small_config
from tests.support.tiny import tiny_config

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def small_recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Work:
    """A model that transformers can express, in an allocator that stays as it is."""
    model = small_config("deformable_detr_r50", backbone=BackboneConfig("resnet18"), num_classes=91)
    config = replace(tiny_config(), model=model)
    monkeypatch.setattr(infer, "recipe_of", lambda name: config)
    monkeypatch.setattr(infer, "keep_large_buffers", lambda: True)
    return Work("small", (64, 96), threads=1, onnx=tmp_path / "model.onnx")


def distance(name: str, work: Work) -> float:
    return infer.output_distance(rival(name, work).outputs(), rival(PLAIN, work).outputs())


def test_rivals_compute_the_same_function_of_a_picture(small_recipe: Work) -> None:
    assert 0 < distance(OURS, small_recipe) < TOLERANCE
    assert 0 < distance(TRANSFORMERS, small_recipe) < TOLERANCE
    assert TOLERANCE < distance(BF16, small_recipe) < 0.1
    assert rival(PLAIN, small_recipe).outputs()[0].std() > 0.01


@pytest.mark.slow
def test_exported_rivals_compute_it_too(small_recipe: Work) -> None:
    export_onnx(small_recipe)
    assert 0 < distance(ONNXRUNTIME, small_recipe) < TOLERANCE
    assert 0 < distance(OPENVINO, small_recipe) < TOLERANCE


def test_ours_is_timed_up_to_detections(small_recipe: Work) -> None:
    (found,) = cast(list[Any], rival(OURS, small_recipe).run())
    assert isinstance(found, Detections)
    assert found.image_size == small_recipe.size
    assert np.isfinite(found.boxes_xyxy).all()
    assert len(found) > 0


def test_16_bit_rivals_come_where_the_processor_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    peers = {TRANSFORMERS: "5", OPENVINO: "2026"}
    monkeypatch.setattr(infer, "cpu_has_bfloat16", lambda: False)
    assert rivals_of(peers) == [TRANSFORMERS, OPENVINO, PLAIN, OURS]
    monkeypatch.setattr(infer, "cpu_has_bfloat16", lambda: True)
    assert rivals_of(peers)[4:] == [BF16, "transformers, bf16", OPENVINO_BF16]


def test_goals() -> None:
    timings = {TRANSFORMERS: Timing((3.7,)), ONNXRUNTIME: Timing((1.4,)), OURS: Timing((1.0,))}
    commands = {IMPORTS: 2.0, HELP: 0.4, COLD_PREDICT: 4.6}
    goals = {goal.name: goal for goal in goals_of(timings, {TRANSFORMERS: 100, OURS: 51}, commands, 0)}
    verdicts = {name: goal.verdict for name, goal in goals.items()}
    assert verdicts == {
        "fp32 against transformers": "met",
        "fp32 against onnxruntime": "aim met",
        "fp32 against openvino": "not measured",
        "bf16 against transformers fp32": "not measured",
        "bf16 against openvino bf16": "not measured",
        "peak memory, share of transformers'": "MISSED",
        "--help, seconds": "aim met",
        "predict, beyond imports and forward": "MISSED",
    }


def test_goals_beside_a_busy_process_are_lower() -> None:
    timings = {
        OPENVINO: Timing((1.5,)),
        OURS: Timing((1.0,)),
        OPENVINO_BF16: Timing((1.1,)),
        BF16: Timing((1.0,)),
    }
    commands = {IMPORTS: 2.0, HELP: 0.4, COLD_PREDICT: 4.6}
    quiet, beside = (
        {goal.name: goal.verdict for goal in goals_of(timings, {OURS: 51}, commands, number)}
        for number in (0, 1)
    )
    assert (quiet["fp32 against openvino"], quiet["bf16 against openvino bf16"]) == ("MISSED", "MISSED")
    assert (beside["fp32 against openvino"], beside["bf16 against openvino bf16"]) == ("aim met", "met")
    assert (
        beside["predict, beyond imports and forward"] == "not measured"
    )  # commands are timed without others


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--recipe", "yolo"], "there is no recipe yolo"),
        (["--against", "tflite"], "--against tflite: no such peer"),
        (["--size", "800"], "--size 800: must be HEIGHTxWIDTH"),
        (["--repeats", "0"], "must be at least 1"),
        (["--beside", "-1"], "--beside -1: must be 0 or more"),
    ],
)
def test_what_is_refused(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["infer", "--against", "", *options]) == 2
    assert message in capsys.readouterr().err


def test_a_model_that_transformers_cannot_express_has_no_peers() -> None:
    installed, missing = infer.peers_of(None, small_config("deformable_detr_r50_fpn"))
    assert installed == {}
    assert set(missing) == set(PEERS)


@pytest.mark.slow
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "infer.json"
    options = ["--recipe", "deformable_detr_lite", "--size", "64x64", "--repeats", "1", "--against", ""]
    assert main(["infer", *options, "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert max(len(line) for line in printed.splitlines()) <= 80
    report = json.loads(output.read_text())
    assert {PLAIN, OURS} <= report["timings"].keys()
    assert report["largest_distance_to_plain"][OURS] < TOLERANCE
    assert report["peak_bytes"][OURS] > 1e8
    assert report["command_seconds"][COLD_PREDICT] > report["command_seconds"][HELP]

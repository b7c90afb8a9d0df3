"""The model that comes with the package."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import deformable_detr as dd
from deformable_detr.checkpoint.names import BUNDLED
from deformable_detr.cli import main
from deformable_detr.data.drawn import generate
from deformable_detr.data.scenes import CLASS_NAMES


def test_it_is_small_and_computes_in_float32() -> None:
    assert sum(path.stat().st_size for path in BUNDLED.rglob("*") if path.is_file()) < 12e6
    detector = dd.load("demo", device="cpu")
    assert detector.classes.names == CLASS_NAMES
    assert {tensor.dtype for tensor in detector.model.parameters()} == {torch.float32}


def test_it_finds_shapes_that_it_has_not_seen(tmp_path: Path) -> None:
    data = generate(tmp_path / "data", train=1, val=12, image_size=(120, 160), seed=99)
    metrics = dd.evaluate("demo", data)
    stated = json.loads((BUNDLED / "metrics.json").read_text())
    assert metrics["AP50"] > 0.5
    assert metrics["AP50"] > stated["AP50"] - 0.2  # twelve pictures instead of two hundred


def test_predict_demo_demo_works_right_after_installation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", "demo", "demo", "--output", str(tmp_path / "out")]) == 0
    rows = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert len({row["file_name"] for row in rows}) == 4
    assert {row["category_name"] for row in rows} <= set(CLASS_NAMES)
    assert "4 pictures" in capsys.readouterr().out


def test_explain_demo_demo_works_too(tmp_path: Path) -> None:
    page = tmp_path / "shapes.html"
    assert main(["explain", "demo", "demo", "--output", str(page), "--threshold", "0.3"]) == 0
    (data,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', page.read_text())
    found = dd.load("demo", device="cpu").predict("demo", 0.3)
    assert len(found) > 0
    assert [row["name"] for row in json.loads(data)["detections"]] == list(found.names)


def test_a_folder_of_that_name_is_meant_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    dd.create("deformable_detr_lite", classes=["cat"], device="cpu").save("demo")
    assert dd.load("./demo", device="cpu").classes.names == ("cat",)
    assert dd.load("demo", device="cpu").classes.names == CLASS_NAMES

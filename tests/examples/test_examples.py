"""Each example trains two updates through the command line, and its model is loaded and used again."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml

import deformable_detr as dd
from deformable_detr.config import to_dict
from deformable_detr.errors import UserError
from tests.support.tiny import tiny_config

EXAMPLES = {
    "another_backbone": ("model.backbone.name", "plain_convolutions", "PlainConvolutions"),
    "another_class_loss": ("model.classification", "asymmetric", "Asymmetric"),
    "another_query": ("model.queries", "grid", "GridQueries"),
}


def example(name: str) -> ModuleType:
    return importlib.import_module(f"examples.{name}")


def test_each_file_of_examples_is_tested() -> None:
    files = Path(__file__).resolve().parents[2].joinpath("examples").glob("*.py")
    assert {path.stem for path in files} - {"__init__"} == set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_trains_and_predicts(name: str, tmp_path: Path, tiny_data: Path) -> None:
    field, value, part = EXAMPLES[name]
    module = example(name)
    config, run = tmp_path / "tiny.yaml", tmp_path / "run"
    config.write_text(yaml.safe_dump(to_dict(tiny_config())))
    command = ["train", tiny_data, "--config", config, "--output", run, f"--{field}", value]
    assert module.main([*map(str, command), "--train.max_steps", "2"]) == 0

    detector = dd.load(run, device="cpu")
    parts = [*detector.model.modules(), detector.classification]
    assert getattr(module, part) in [type(each) for each in parts]
    picture = next((tiny_data / "val").iterdir())
    detections = detector.predict(picture, threshold=0.0)
    assert len(detections) > 0
    # `predict` runs the model's fast replica, `explain` the model itself
    plain = detector.explain(picture, threshold=0.0).detections
    np.testing.assert_allclose(detections.scores, plain.scores, atol=1e-4)


def test_a_checkpoint_with_an_unknown_part_is_refused(tmp_path: Path) -> None:
    example("another_query")
    folder = dd.create("deformable_detr_lite", classes=["a"]).save(tmp_path / "model")
    description = json.loads((folder / "config.json").read_text())
    description["model"]["queries"] = "nobody_registered_this"
    (folder / "config.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match=r"queries.*nobody_registered_this"):
        dd.load(folder)

"""A run from its start to its end: what it leaves in its folder, and which weights it returns."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import deformable_detr as dd
from deformable_detr.config import RunConfig, from_dict
from deformable_detr.errors import UserError
from deformable_detr.evaluation import evaluate
from deformable_detr.files import DRAFTS
from deformable_detr.training import run as training
from deformable_detr.training import train
from deformable_detr.training.optimisation import learning_rate_factor
from deformable_detr.training.parts import build_parts
from tests.support.tiny import (
    IMAGE_SIZE,
    as_detr,
    changed_data,
    rows,
    state,
    tiny_config,
    weights,
)

pytestmark = pytest.mark.usefixtures("one_thread")

UPDATES_PER_EPOCH, UPDATES = 6, 12


def test_run_folder(whole_run: Path, tiny_data: Path) -> None:
    config = from_dict(RunConfig, yaml.safe_load((whole_run / "config.yaml").read_text()))
    assert config == replace(tiny_config(), model=replace(tiny_config().model, num_classes=6))
    assert {path.name for path in (whole_run / "checkpoints").iterdir()} == {"last", "best"}
    assert list(whole_run.glob("events.out.tfevents.*"))
    assert not list(whole_run.rglob(f"{DRAFTS}*"))
    assert state(whole_run)["step"] == UPDATES


def test_metrics_rows(whole_run: Path) -> None:
    train_rows, evaluation_rows = rows(whole_run, "train"), rows(whole_run, "evaluation")
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


def test_metrics_file_is_json(whole_run: Path) -> None:
    for line in (whole_run / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_the_schedule_reaches_the_optimizer(whole_run: Path) -> None:
    settings = tiny_config().train
    for row in rows(whole_run, "train"):
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
    detections, again = detector.predict(image, threshold=0.0), loaded.predict(image, threshold=0.0)
    assert detections.image_size == IMAGE_SIZE
    assert len(detections) > 0
    np.testing.assert_array_equal(detections.boxes_xyxy, again.boxes_xyxy)
    np.testing.assert_array_equal(detections.scores, again.scores)


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
    untrained = build_parts(tiny_data, tiny_config(max_steps=0), tmp_path / "other").state.model.state_dict()
    written = weights(tmp_path / "run")
    assert written.keys() == untrained.keys()
    assert all(torch.equal(value, untrained[key]) for key, value in written.items())


def test_no_object_to_learn_from(tiny_data: Path, tmp_path: Path) -> None:
    data = changed_data(tiny_data, tmp_path / "data", lambda content: content["annotations"].clear())
    with pytest.raises(UserError, match=r"train of .*instances_train\.json has no object"):
        train(data, tiny_config(max_steps=2), tmp_path / "run")
    assert not (tmp_path / "run").exists()

    def as_crowds(content: dict[str, Any]) -> None:
        for row in content["annotations"]:
            row["iscrowd"] = 1

    with pytest.raises(UserError, match=r"only [0-9]+ crowd regions"):
        train(changed_data(tiny_data, tmp_path / "crowds", as_crowds), tiny_config(), tmp_path / "run")


def test_images_without_objects(tiny_data: Path, tmp_path: Path) -> None:
    data = changed_data(
        tiny_data, tmp_path / "data", lambda content: content["annotations"].__delitem__(slice(1, None))
    )
    for config in (tiny_config(max_steps=2), as_detr(tiny_config(max_steps=2))):
        run = tmp_path / config.model.attention
        train(data, config, run)
        empty = [row for row in rows(run, "train") if row["box"] == row["giou"] == 0]
        assert empty
        assert all(math.isfinite(row["loss"]) for row in rows(run, "train"))


def test_a_run_is_not_overwritten(whole_run: Path, tiny_data: Path) -> None:
    with pytest.raises(UserError, match="already contains a run: add --resume"):
        train(tiny_data, tiny_config(), whole_run)


def test_unknown_overrides_are_refused_by_name(tiny_data: Path, tmp_path: Path) -> None:
    for name in ("learning_rate", "train.learning_rate", "model.backbone.names"):
        with pytest.raises(UserError, match=name):
            train(tiny_data, tiny_config(), tmp_path / "run", **{name: 1})

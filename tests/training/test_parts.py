"""What a run is built from: another model's weights, a frozen backbone, the settings of the loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import deformable_detr as dd
from deformable_detr.config import RunConfig
from deformable_detr.errors import UserError
from deformable_detr.training import resolve_config, train
from tests.support.tiny import (
    as_detr,
    changed_data,
    rows,
    tiny_config,
    weights,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def test_init_from_brings_recipe_architecture_and_preprocessing(
    whole_run: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = resolve_config(None, tmp_path / "run", init_from=whole_run)
    assert config.recipe == "deformable_detr_lite"
    assert replace(config.model, num_classes=6) == dd.load(whole_run).config
    assert (config.data.image_size, config.data.train_sizes) == (64, (48, 64))

    def other_classes(content: dict[str, Any]) -> None:
        content["categories"][1]["name"] = "box"

    data = changed_data(tiny_data, tmp_path / "data", other_classes)
    detector = train(data, None, tmp_path / "run", init_from=whole_run, max_steps=0, ema_decay=0.0)
    said = capsys.readouterr().out
    assert "5 classes taken over" in said
    assert "1 classes start fresh: box" in said
    start, source = detector.model.state_dict(), weights(whole_run, "best")
    for key, value in source.items():
        rows_taken = [0, 2, 3, 4, 5] if ".class_head." in key else slice(None)
        assert torch.equal(start[key][rows_taken], value[rows_taken]), key


def test_init_from_refuses_another_architecture(whole_run: Path, tiny_data: Path, tmp_path: Path) -> None:
    for changes in ({"hidden_dim": 64}, {"ffn_dim": 32}, {"num_points": 4}):
        with pytest.raises(UserError, match=r"--init-from: the model differs .*leave --recipe out"):
            train(tiny_data, tiny_config(**changes), tmp_path / "run", init_from=whole_run)


def test_frozen_backbone(tiny_data: Path, tmp_path: Path) -> None:
    train(tiny_data, tiny_config(max_steps=0, ema_decay=0.0), tmp_path / "start")
    train(tiny_data, tiny_config(max_steps=3, ema_decay=0.0, lr_backbone=0.0), tmp_path / "run")
    before = weights(tmp_path / "start")
    moved = {key for key, value in weights(tmp_path / "run").items() if not torch.equal(value, before[key])}
    assert moved
    assert not any(key.startswith("backbone.") for key in moved)
    assert set(rows(tmp_path / "run", "train")[0]["learning_rate"]) == {"base", "sampling"}


@pytest.mark.parametrize(
    ("config", "changed"),
    [
        (tiny_config(epochs=1, max_steps=1, log_every=1), {"focal_alpha": 0.9}),
        (as_detr(tiny_config(epochs=1, max_steps=1, log_every=1)), {"no_object_weight": 1.0}),
    ],
    ids=["focal", "softmax"],
)
def test_settings_of_the_class_loss_reach_the_loss(
    tiny_data: Path, tmp_path: Path, config: RunConfig, changed: dict[str, float]
) -> None:
    train(tiny_data, config, tmp_path / "a")
    train(tiny_data, config, tmp_path / "b", **changed)
    first, second = (rows(tmp_path / name, "train")[0]["class"] for name in ("a", "b"))
    assert first != second

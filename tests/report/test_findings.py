"""The sentences: they say what made runs and made numbers are about."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deformable_detr.config import RunConfig
from deformable_detr.errors import UserError
from deformable_detr.evaluation.areas import SIZES
from deformable_detr.report.findings import (
    calibration_title,
    loss_title,
    out_of,
    rate_title,
    training_limit,
    training_title,
    weakest_size,
)
from deformable_detr.report.measures import Calibration
from deformable_detr.run_folder.reading import History, changes_from_recipe, read_history
from tests.support.made_runs import make_run
from tests.support.tiny import tiny_config


def history(tmp_path: Path, aps: list[float]) -> History:
    found = read_history(make_run(tmp_path / "run", tiny_config(epochs=max(1, len(aps))), aps))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("aps", "title"),
    [
        ([0.1, 0.2, 0.3, 0.4], "Still improving at the end: AP 40.0 in epoch 4, the last one"),
        ([0.1, 0.4, 0.4, 0.401], "Levelled off at the end: AP 40.1 in epoch 4, the last one"),
        ([0.1, 0.4, 0.39, 0.38], "Best AP 40.0 in epoch 2; 2 more epochs brought no gain"),
        ([0.1, 0.4, 0.3], "Best AP 40.0 in epoch 2, then it got worse (30.0 at the end)"),
        ([0.2], "AP 20.0 after epoch 1, the only one evaluated"),
        ([], "Not evaluated during training"),
    ],
)
def test_how_training_went(tmp_path: Path, aps: list[float], title: str) -> None:
    found = history(tmp_path, aps)
    assert training_title(found).startswith(title)
    limit = training_limit(found)
    assert (limit is not None) == title.startswith("Still")


def test_a_run_that_continues(tmp_path: Path) -> None:
    config = tiny_config(epochs=5)
    found = read_history(make_run(tmp_path / "run", config, [0.1, 0.3, 0.2]))
    assert found is not None
    assert found.unfinished
    assert training_title(found) == "Not finished: AP 30.0 in epoch 2, the best so far"
    limit = training_limit(found)
    assert limit is not None
    assert limit.text == "3 of 5 epochs: continue with --resume."
    ended = replace(found, config=tiny_config(epochs=5, max_steps=30))
    assert not ended.unfinished


def test_best_is_the_first_among_equals(tmp_path: Path) -> None:
    best = history(tmp_path, [0.1, 0.3, 0.3]).best
    assert best is not None
    assert best["epoch"] == 1


def test_seconds_are_those_of_the_updates(tmp_path: Path) -> None:
    assert history(tmp_path, [0.1, 0.3]).seconds == 7200


def with_updates(tmp_path: Path, *updates: dict[str, Any]) -> History:
    return replace(history(tmp_path, []), updates=updates)


def test_losses_and_rates(tmp_path: Path) -> None:
    def update(loss: float, rate: float) -> dict[str, Any]:
        return {"loss": loss, "learning_rate": {"base": rate}, "step": 1}

    found = with_updates(tmp_path, update(20.0, 1e-5), update(9.0, 1e-4), update(5.0, 1e-6))
    assert loss_title(found) == "The loss fell from 20 to 5"
    assert rate_title(found) == "The learning rate peaked at 1.0e-04 and fell to 1.0e-06"
    found = with_updates(tmp_path / "b", update(5.0, 1e-4), update(6.0, 1e-4))
    assert loss_title(found).startswith("The loss did not fall")
    assert rate_title(found) == "The learning rate stayed at 1.0e-04"


def test_what_differs_from_the_recipe() -> None:
    assert changes_from_recipe(RunConfig()) == []
    config = replace(RunConfig(), model=replace(RunConfig().model, num_queries=50, num_classes=3))
    (change,) = changes_from_recipe(config)
    assert (change.path, change.recipe, change.run) == ("model.num_queries", 300, 50)


def test_no_run_folder_and_a_broken_one(tmp_path: Path) -> None:
    assert read_history(tmp_path) is None
    run = make_run(tmp_path / "run", tiny_config(), [0.1])
    (run / "environment.jsonl").write_text(json.dumps({"step": 0}) + "\nnot json\n")
    with pytest.raises(UserError, match=r"environment\.jsonl cannot be read"):
        read_history(run)


@pytest.mark.parametrize(
    ("error", "bias", "words"),
    [
        (0.02, 0.02, "can be read as probabilities"),
        (0.2, 0.2, "too high, by 20.0 points"),
        (0.2, -0.15, "too low, by 15.0 points"),
        (0.2, 0.01, "too high in some ranges and too low in others"),
    ],
)
def test_calibration(error: float, bias: float, words: str) -> None:
    nothing = np.zeros(10)
    assert words in calibration_title(Calibration(nothing, nothing, nothing, error, bias))


@pytest.mark.parametrize(
    ("counts", "short"),
    [
        ((5, 5, 90), "Weakest size: small"),
        ((2, 8, 90), "Weakest size: medium"),  # too few small ones
        ((0, 0, 90), None),
    ],
)
def test_the_weakest_size_is_one_that_matters(counts: tuple[int, int, int], short: str | None) -> None:
    summary = {"AP": 0.5, "APs": 0.1, "APm": 0.2, "APl": 0.6}
    limit = weakest_size(summary, dict(zip(SIZES, counts, strict=True)))
    assert (None if limit is None else limit.short) == short


def test_words() -> None:
    assert out_of(0.836) == "84 of 100"

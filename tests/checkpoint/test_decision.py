"""A model's thresholds in its config.json: read back as written, refused if they cannot be right."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deformable_detr.checkpoint import Checkpoint, Decision, checkpoint_folder, load, save, save_decision
from deformable_detr.errors import UserError
from tests.support.small_models import random_checkpoint, smallest_detr

DECISION = Decision((0.32, 0.5, 0.07), ("own", "all classes", "most precise"), 0.9, "val", 12)


@pytest.fixture(scope="module")
def model() -> Checkpoint:
    return random_checkpoint(smallest_detr(num_classes=3))


@pytest.fixture
def folder(tmp_path: Path, model: Checkpoint) -> Path:
    save(tmp_path / "model", replace(model, decision=DECISION))
    return tmp_path / "model"


def test_a_decision_is_read_as_it_was_written(folder: Path) -> None:
    assert load(folder).decision == DECISION
    content = json.loads((folder / "config.json").read_text())["decision"]
    assert content["thresholds"] == [0.32, 0.5, 0.07]
    assert content["rule"] == 0.9


def test_checkpoints_without_one_have_none(tmp_path: Path, model: Checkpoint) -> None:
    save(tmp_path / "model", model)
    assert "decision" not in json.loads((tmp_path / "model" / "config.json").read_text())
    assert load(tmp_path / "model").decision is None


def test_saving_a_decision_changes_nothing_else(folder: Path) -> None:
    before = json.loads((folder / "config.json").read_text())
    before["versions"] = {"deformable_detr": "0.0.1", "torch": "2.0"}
    (folder / "config.json").write_text(json.dumps(before))
    weights = (folder / "model.safetensors").read_bytes()
    new = replace(DECISION, thresholds=(0.1, 0.2, 0.3), rule="best_f1")
    save_decision(checkpoint_folder(folder), new)
    assert load(folder).decision == new
    after = json.loads((folder / "config.json").read_text())
    assert {**after, "decision": None} == {**before, "decision": None}
    assert (folder / "model.safetensors").read_bytes() == weights
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}


def test_the_folder_of_a_run_is_that_of_its_best_weights(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    last = folder.rename(run / "checkpoints" / "last")
    assert checkpoint_folder(run) == last
    save(run / "checkpoints" / "best", load(last))
    assert checkpoint_folder(run) == run / "checkpoints" / "best"


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("thresholds", [0.5, 0.5], r"decision\.thresholds must list one entry for each of 3 classes"),
        ("thresholds", 0.5, r"decision\.thresholds must list"),
        (
            "thresholds",
            [0.5, 2.0, 0.5],
            r"decision\.thresholds\[1\] must be a number between 0 and 1, not 2\.0",
        ),
        ("thresholds", [float("nan"), 0.5, 0.5], r"decision\.thresholds\[0\] .* not nan"),
        ("thresholds", [0.5, 0.5, float("-inf")], r"decision\.thresholds\[2\] .* not -inf"),
        ("thresholds", [0.5, 10**400, 0.5], r"decision\.thresholds\[1\]"),
        ("thresholds", [0.5, "0.5", 0.5], r"decision\.thresholds\[1\] .* not '0\.5'"),
        ("thresholds", [0.5, True, 0.5], r"decision\.thresholds\[1\]"),
        ("bases", ["own", "own"], r"decision\.bases must list"),
        ("bases", ["own", "guess", {}], r"decision\.bases\[1\] must be one of own, all classes"),
        ("bases", ["own", {}, "own"], r"decision\.bases\[1\]"),
        ("rule", "worst", r"decision\.rule must be best_f1 or"),
        ("rule", 0, r"decision\.rule"),
        ("split", 3, r"decision\.split must be a string"),
        ("images", 0, r"decision\.images must be a positive integer"),
        ("images", "many", r"decision\.images"),
        ("more", 1, "decision must have the fields"),
    ],
)
def test_what_cannot_be_right_is_refused(folder: Path, field: str, value: Any, sentence: str) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text())
    content["decision"][field] = value
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"config\.json: {sentence}") as refused:
        load(folder)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("value", [None, 7, [], "0.5"])
def test_a_decision_must_be_an_object(folder: Path, value: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"decision": value}))
    with pytest.raises(UserError, match=r"config\.json: decision must have the fields"):
        load(folder)


def test_a_broken_config_gets_no_decision(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"recipe": "detr_r7"}))
    before = path.read_bytes()
    with pytest.raises(UserError, match="no recipe detr_r7"):
        save_decision(folder, DECISION)
    assert path.read_bytes() == before

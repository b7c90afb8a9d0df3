"""Recipe, configuration file and overrides; the splits and the classes of the data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from deformable_detr.cli import main
from deformable_detr.config import override, recipe, to_dict
from deformable_detr.errors import UserError
from deformable_detr.training import resolve_config, train
from tests.support.tiny import (
    changed_data,
    state,
    tiny_config,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def test_recipe_below_file_below_overrides(tiny_data: Path, tmp_path: Path) -> None:
    content = to_dict(tiny_config(max_steps=0))
    content["train"] |= {"lr": 0.01, "seed": 5}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    train(tiny_data, "deformable_detr_lite", tmp_path / "python", config=path, seed=6)
    arguments = ["--recipe", "deformable_detr_lite", "--config", str(path), "--train.seed", "6"]
    assert main(["train", str(tiny_data), *arguments, "--output", str(tmp_path / "command")]) == 0
    for run in ("python", "command"):
        written = yaml.safe_load((tmp_path / run / "config.yaml").read_text())
        assert written["train"]["seed"] == 6
        assert written["train"]["lr"] == 0.01
        assert written["train"]["schedule"] == "cosine"
        assert written["model"]["num_queries"] == 10
        assert written["recipe"] == "deformable_detr_lite"


def test_a_file_can_name_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("recipe: deformable_detr_lite\ntrain: {epochs: 3}")
    config = resolve_config(None, tmp_path, config=path)
    assert config == override(recipe("deformable_detr_lite"), {"train.epochs": 3})
    with pytest.raises(UserError, match=r"run.yaml is for recipe deformable_detr_lite, not for detr_r50"):
        resolve_config("detr_r50", tmp_path, config=path)


@pytest.mark.parametrize("value", ["[detr_r50]", "{detr_r50: 1}", "5"])
def test_a_recipe_that_is_no_name(value: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"recipe: {value}")
    with pytest.raises(UserError, match="there is no recipe"):
        resolve_config(None, tmp_path, config=path)


def test_a_file_may_change_the_family(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    other = recipe("detr_r50")
    path.write_text(yaml.safe_dump({"model": to_dict(other.model)}))
    assert resolve_config("deformable_detr_r50", tmp_path, config=path).model == other.model


def test_a_whole_configuration_and_a_file(tiny_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("train: {max_steps: 0}")
    train(tiny_data, tiny_config(), tmp_path / "run", config=path)
    assert state(tmp_path / "run")["step"] == 0


def test_resume_takes_a_file_on_top_and_refuses_another_recipe(whole_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("train: {epochs: 9}")
    config = resolve_config("deformable_detr_lite", whole_run, config=path, resume=True)
    assert (config.train.epochs, config.model.num_queries) == (9, 10)
    with pytest.raises(UserError, match=r"whole is a run of deformable_detr_lite, not of detr_r50"):
        resolve_config("detr_r50", whole_run, resume=True)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("train: {learning_rate: 1}", r"run.yaml.*train\.learning_rate"),
        ("trian: {lr: 1}", "run.yaml.*trian"),
        ("- 1", "run.yaml holds no configuration"),
        ("a: [", "run.yaml cannot be read as a YAML"),
        ("train: 3", "run.yaml.*train"),
    ],
)
def test_a_file_is_refused_by_name(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(UserError, match=sentence) as refusal:
        resolve_config("deformable_detr_lite", tmp_path, config=tmp_path / "run.yaml")
    assert "\n" not in str(refusal.value)


def test_command_line_refusals(
    whole_run: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, sentence in (
        (["--resume", "--output", str(tmp_path / "nothing")], "contains no training state"),
        (["--recipe", "deformable_detr_lite", "--output", str(whole_run)], "already contains a run"),
        (["--resume", "--output", str(whole_run), "--train.batch_size", "3"], "images per update"),
        (["--recipe", "deformable_detr_r5"], "there is no recipe deformable_detr_r5"),
    ):
        assert main(["train", str(tiny_data), *arguments]) == 2
        error = capsys.readouterr().err
        assert sentence in error
        assert error.count("\n") == 1


def test_the_number_of_classes_is_the_data_s(tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"num_classes is 7, but .* has 6 classes"):
        train(tiny_data, tiny_config(num_classes=7), tmp_path / "run")
    detector = train(tiny_data, tiny_config(num_classes=6, max_steps=0), tmp_path / "run")
    assert detector.config.num_classes == 6


def test_splits_without_a_common_class_are_refused_at_once(tiny_data: Path, tmp_path: Path) -> None:
    data = changed_data(tiny_data, tmp_path / "data", lambda content: None)
    path = data / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    for number, category in enumerate(content["categories"]):
        category["name"] = f"other {number}"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"have no class in common: give both splits the same class names"):
        train(data, tiny_config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()

"""The package's own checkpoint folders, and finding out what a MODEL is."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from deformable_detr import checkpoint as checkpoints
from deformable_detr.checkpoint import Checkpoint, class_table_for, load, save
from deformable_detr.checkpoint.contents import closest_recipe
from deformable_detr.config import RECIPES, BackboneConfig, DataConfig, recipe
from deformable_detr.detections import ClassTable
from deformable_detr.errors import UserError
from tests.support.small_models import (
    assert_same_weights,
    random_checkpoint,
    small_config,
    smallest_detr,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def detr() -> Checkpoint:
    return random_checkpoint(smallest_detr())


@pytest.fixture
def folder(detr: Checkpoint, tmp_path: Path) -> Path:
    save(tmp_path / "model", detr)
    return tmp_path / "model"


def edit_config(folder: Path, **changes: object) -> None:
    """Change top-level fields of config.json; None deletes one."""
    path = folder / "config.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def assert_same_checkpoint(found: Checkpoint, expected: Checkpoint) -> None:
    assert_same_weights(found.model, expected.model)
    assert replace(found, model=expected.model) == expected


@pytest.mark.parametrize(
    "config",
    [
        smallest_detr(num_classes=3),
        small_config("deformable_detr_r50_two_stage", num_classes=3, backbone=BackboneConfig("resnet18")),
        small_config(
            "deformable_detr_lite", num_classes=3, backbone=BackboneConfig("test_efficientnet"), num_levels=2
        ),
    ],
    ids=["detr", "two_stage", "timm"],
)
def test_what_is_saved_is_loaded(config: Any, tmp_path: Path) -> None:
    classes = ClassTable(("Straße", None, "a/b"), (7, 3, 90))
    data = DataConfig(image_size=240, max_size=400, train_sizes=(200, 240), mean=(0.5, 0.5, 0.5))
    original = replace(random_checkpoint(config, classes), data=data)
    save(tmp_path / "a" / "model", original)
    assert sorted(path.name for path in (tmp_path / "a").rglob("*")) == [
        "config.json",
        "model",
        "model.safetensors",
    ]
    assert_same_checkpoint(load(tmp_path / "a" / "model"), original)


def test_a_loaded_model_is_ready_to_use_and_to_train(folder: Path) -> None:
    model = load(folder).model
    assert not model.training
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert not model.backbone.stem[0].weight.requires_grad
    assert model.backbone.stages[3][0].conv1.weight.requires_grad


def test_channels_last_weights_are_saved_like_others(detr: Checkpoint, tmp_path: Path) -> None:
    checkpoint = random_checkpoint(detr.config)
    checkpoint.model.backbone.to(memory_format=torch.channels_last)
    save(tmp_path / "model", checkpoint)
    assert_same_weights(load(tmp_path / "model").model, checkpoint.model)


def test_config_json_describes_the_model(folder: Path) -> None:
    content = json.loads((folder / "config.json").read_text())
    assert (content["format"], content["format_version"]) == ("deformable_detr", 1)
    assert content["model"]["num_queries"] == 7
    assert content["classes"]["names"][0] == "class 0"
    assert content["preprocessing"]["image_size"] == 800
    assert content["recipe"] == "detr_r50"
    assert content["versions"]["torch"] == torch.__version__


class TestReplacing:
    def test_new_weights(self, folder: Path, detr: Checkpoint) -> None:
        other = Checkpoint(**(vars(detr) | {"model": random_checkpoint(detr.config).model}))
        with torch.no_grad():
            other.model.queries.positions += 1
        save(folder, other)
        assert_same_checkpoint(load(folder), other)
        assert [path.name for path in folder.parent.iterdir()] == ["model"]

    def test_another_model(self, folder: Path) -> None:
        other = random_checkpoint(smallest_detr(num_classes=2, num_queries=3))
        save(folder, other)
        assert_same_checkpoint(load(folder), other)
        assert [path.name for path in folder.parent.iterdir()] == ["model"]

    @pytest.mark.parametrize("what", ["save_file", "replace", "rename"])
    def test_failure_keeps_the_old_one(
        self, what: str, folder: Path, detr: Checkpoint, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*args: Any, **kwargs: Any) -> None:
            raise OSError("disk full")

        other = detr if what == "replace" else random_checkpoint(smallest_detr(num_classes=2))
        if what == "rename":  # the second one, which puts the new folder in place
            rename = os.rename
            answers = iter([rename, fail, rename])
            monkeypatch.setattr(os, "rename", lambda a, b: next(answers)(a, b))
        else:
            monkeypatch.setattr(*((os, what) if what == "replace" else (checkpoints.native, what)), fail)
        with pytest.raises(OSError, match="disk full"):
            save(folder, other)
        monkeypatch.undo()
        assert_same_checkpoint(load(folder), detr)
        assert [path.name for path in folder.parent.iterdir()] == ["model"]

    def test_other_peoples_files_are_left_alone(self, tmp_path: Path, detr: Checkpoint) -> None:
        (tmp_path / "thesis.tex").write_text("my life")
        with pytest.raises(UserError, match=r"thesis\.tex.*choose another folder"):
            save(tmp_path, detr)
        with pytest.raises(UserError, match="is a file"):
            save(tmp_path / "thesis.tex", detr)
        (tmp_path / "hub").mkdir()
        (tmp_path / "hub" / "config.json").write_text('{"model_type": "detr"}')
        with pytest.raises(UserError, match=r"config\.json.*choose another folder"):
            save(tmp_path / "hub", detr)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["hub", "thesis.tex"]

    def test_an_empty_folder_is_filled(self, tmp_path: Path, detr: Checkpoint) -> None:
        save(tmp_path, detr)
        assert_same_checkpoint(load(tmp_path), detr)


class TestDamage:
    @pytest.mark.parametrize(
        ("changes", "sentence"),
        [
            ({"format_version": 2}, "format version 2.*newer"),
            ({"surprise": 1}, "unknown or missing fields.*surprise"),
            ({"preprocessing": None}, "unknown or missing fields.*preprocessing"),
            ({"model": {"num_wheels": 4}}, r"config\.json: unknown field model\.num_wheels"),
            ({"model": {"num_queries": "many"}}, r"config\.json: model\.num_queries"),
            ({"model": 7}, "malformed"),
            ({"preprocessing": {"image_size": 2}}, r"data\.image_size"),
            ({"classes": {"names": ["a"], "category_ids": [1]}}, "names 1 classes.*num_classes is 5"),
            ({"classes": {"names": ["a"]}}, "malformed"),
            ({"recipe": "detr_r7"}, "no recipe detr_r7; set recipe to one of"),
        ],
    )
    def test_config(self, changes: dict[str, Any], sentence: str, folder: Path) -> None:
        edit_config(folder, **changes)
        with pytest.raises(UserError, match=sentence):
            load(folder)

    def test_no_json(self, folder: Path) -> None:
        (folder / "config.json").write_text("{")
        with pytest.raises(UserError, match=r"config\.json cannot be read as JSON"):
            load(folder)

    def test_another_size(self, folder: Path, detr: Checkpoint) -> None:
        model = json.loads((folder / "config.json").read_text())["model"]
        edit_config(folder, model=model | {"ffn_dim": 64, "decoder_layers": 3})
        with pytest.raises(UserError, match=r"model: .* missing \(decoder\.layers\.2.* of another shape"):
            load(folder)

    def test_cut_off_weights(self, folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(UserError, match=r"model\.safetensors cannot be read"):
            load(folder)
        path.unlink()
        with pytest.raises(UserError, match=r"model\.safetensors cannot be read"):
            load(folder)


class TestSources:
    def test_a_run_has_its_best_or_its_last(self, folder: Path, detr: Checkpoint, tmp_path: Path) -> None:
        run = tmp_path / "run"
        (run / "checkpoints").mkdir(parents=True)
        with pytest.raises(UserError, match=r"run folder .* holds no checkpoint yet"):
            load(run)
        folder.rename(run / "checkpoints" / "last")
        assert load(run).config == detr.config
        best = random_checkpoint(smallest_detr(num_classes=2))
        save(run / "checkpoints" / "best", best)
        assert load(run).config == best.config
        assert load(str(run / "checkpoints" / "last")).config == detr.config

    def test_a_refused_source_is_reported_with_the_supported_ones(self, tmp_path: Path, folder: Path) -> None:
        (tmp_path / "empty").mkdir()
        (tmp_path / "notes.txt").write_text("hello")
        for source, sentence in {
            tmp_path / "empty": "holds no model: give a run folder",
            tmp_path / "nothing": "there is no model .*nothing: give a run folder",
            tmp_path / "model.onnx": "exported model",
            tmp_path / "notes.txt": "not a PyTorch file",
            folder / "model.safetensors": "give its folder",
            "one/two/three": "there is no model",
        }.items():
            with pytest.raises(UserError, match=sentence):
                load(source)

    def test_a_hub_id_is_downloaded(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        import huggingface_hub

        asked = []

        def snapshot_download(name: str, allow_patterns: list[str]) -> str:
            asked.append((name, allow_patterns))
            (tmp_path / "config.json").write_text('{"model_type": "yolos"}')
            return str(tmp_path)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        with pytest.raises(UserError, match="someone/model: this is a transformers model of type yolos"):
            load("someone/model")
        # PyTorch's own files only where there are no safetensors
        assert asked == [
            ("someone/model", ["*.json", "model*.safetensors*"]),
            ("someone/model", ["*.json", "pytorch_model*"]),
        ]

    def test_a_hub_that_cannot_be_reached(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import huggingface_hub

        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(UserError, match=r"someone/nothing.*Hugging Face hub"):
            load("someone/nothing")


def test_closest_recipe_knows_every_recipe() -> None:
    for name in RECIPES:
        # Recipes of the same model differ only in training.
        same_model = [other for other in RECIPES if recipe(other).model == recipe(name).model]
        assert closest_recipe(replace(recipe(name).model, num_classes=4, num_queries=11)) == same_model[0]
    assert closest_recipe(small_config("deformable_detr_r50_refine")) == "deformable_detr_r50_refine"
    assert closest_recipe(smallest_detr()) == "detr_r50"


def test_class_tables_without_names() -> None:
    coco = class_table_for(91)
    assert sum(name is not None for name in coco.names) == 80
    assert (coco.names[1], coco.names[12], coco.names[90]) == ("person", None, "toothbrush")
    assert coco.category_ids == tuple(range(91))
    assert class_table_for(2).names == ("class 0", "class 1")


def test_coco_names_are_torchvisions() -> None:
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    theirs = FasterRCNN_ResNet50_FPN_Weights.DEFAULT.meta["categories"]
    assert [name or "N/A" for name in class_table_for(91).names[1:]] == theirs[1:]

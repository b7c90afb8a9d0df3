"""Conversions between formats change no bit, and transformers computes the same with what we write."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from deformable_detr.checkpoint import Checkpoint, load, save
from deformable_detr.checkpoint.convert import convert
from deformable_detr.config import BackboneConfig, DataConfig, ModelConfig, recipe
from deformable_detr.detections import ClassTable
from deformable_detr.errors import UserError
from tests.support.foreign_models import small_transformers_model, unequal_images
from tests.support.small_models import (
    assert_same_weights,
    random_checkpoint,
    small_config,
    smallest_detr,
)

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = ClassTable(("ant", "bee", None, "cat", "dog"), (5, 4, 3, 2, 10))
RESNET18 = BackboneConfig("resnet18")
DEFORMABLE = "deformable_detr_r50"


def deformable(name: str, **changes: object) -> ModelConfig:
    return small_config(f"{DEFORMABLE}{name}", backbone=RESNET18, **changes)


MODELS = {
    "detr": smallest_detr(),
    "refine": deformable("_refine", num_heads=4, num_levels=3, num_points=2),
    "two_stage": deformable("_two_stage"),
    "single_scale_dc5": small_config(f"{DEFORMABLE}_single_scale_dc5"),
}


def written(config: ModelConfig, folder: Path) -> Checkpoint:
    checkpoint = replace(random_checkpoint(config, CLASSES), data=DataConfig(image_size=320, max_size=500))
    save(folder, checkpoint)
    return checkpoint


@pytest.mark.parametrize("name", MODELS)
def test_to_transformers_and_back(name: str, tmp_path: Path) -> None:
    original = written(MODELS[name], tmp_path / "native")
    folder = convert(tmp_path / "native", tmp_path / "transformers", "transformers")
    convert(folder, tmp_path / "back", "native")
    back = load(tmp_path / "back")
    assert_same_weights(back.model, original.model)
    assert replace(back, model=original.model) == original

    model, info = model_class(MODELS[name]).from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert model.config.id2label == {0: "ant", 1: "bee", 2: "N/A", 3: "cat", 4: "dog"}
    assert_same_outputs(model.eval(), original.model)


def test_preprocessing_for_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint(
        model=random_checkpoint(smallest_detr()).model,
        config=smallest_detr(),
        classes=CLASSES,
        data=DataConfig(image_size=320, max_size=500, mean=(0.5, 0.4, 0.3)),
        recipe="detr_r50",
    )
    monkeypatch.setattr("deformable_detr.checkpoint.convert.load", lambda source: checkpoint)
    processor = transformers.DetrImageProcessor.from_pretrained(
        convert("model", tmp_path / "out", "transformers")
    )
    assert dict(processor.size) == {"shortest_edge": 320, "longest_edge": 500}
    assert tuple(processor.image_mean) == (0.5, 0.4, 0.3)


def test_sizes_that_transformers_does_not_round_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "native", replace(random_checkpoint(smallest_detr()), data=DataConfig(size_multiple=32)))
    with pytest.raises(UserError, match=r"data\.size_multiple=32 cannot be written for transformers"):
        convert(tmp_path / "native", tmp_path / "out", "transformers")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["detr", "single_scale_dc5"])
def test_to_the_authors_and_back(name: str, tmp_path: Path) -> None:
    """More variants in test_checkpoint_authors.py."""
    original = written(MODELS[name], tmp_path / "native")
    path = convert(tmp_path / "native", tmp_path / "authors.pth", "authors")
    back = load(convert(path, tmp_path / "back", "native"))
    assert_same_weights(back.model, original.model)
    assert replace(back, model=original.model, data=original.data) == original


@pytest.mark.parametrize(
    ("family", "options"),
    [("detr", {}), ("deformable_detr", {"with_box_refine": True, "two_stage": True})],
    ids=["detr", "two_stage"],
)
def test_from_transformers_and_back(family: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = small_transformers_model(family, **options)
    model.save_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "native", "native")
    convert(tmp_path / "native", tmp_path / "again", "transformers")
    again = type(model).from_pretrained(tmp_path / "again").eval()
    batch = unequal_images()
    with torch.no_grad():
        found, expected = (m(batch.pixels, pixel_mask=(~batch.mask).long()) for m in (again, model))
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.pred_boxes, expected.pred_boxes, atol=1e-5, rtol=0)


def model_class(config: ModelConfig) -> type:
    if config.attention == "dense":
        return transformers.DetrForObjectDetection
    return transformers.DeformableDetrForObjectDetection


@torch.no_grad()
def assert_same_outputs(theirs: nn.Module, ours: nn.Module) -> None:
    batch = unequal_images()
    expected = theirs(batch.pixels, pixel_mask=(~batch.mask).long())
    found = ours(batch).predictions[-1]
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.boxes_cxcywh, expected.pred_boxes, atol=1e-5, rtol=0)


PLAIN = small_config(DEFORMABLE)
TWO_STAGE = small_config(f"{DEFORMABLE}_two_stage")


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (recipe("deformable_detr_lite").model, "backbone.name=tf_efficientnet_lite0"),
        (recipe("detr_r50_dc5_plus").model, "classification=sigmoid_focal"),
        (replace(PLAIN, decoder_norm=True), "decoder_norm=True"),
        (replace(PLAIN, position="sine"), "position=sine"),
        (replace(PLAIN, num_levels=2), "num_levels=2"),
        (replace(PLAIN, hidden_dim=48), "hidden_dim=48"),
        (replace(TWO_STAGE, mask_invalid_proposals=True), "mask_invalid_proposals=True"),
    ],
)
@pytest.mark.parametrize("to", ["authors", "transformers"])
def test_models_that_others_do_not_have(
    config: ModelConfig, field: str, to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expect_refusal(config, field, to, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (replace(PLAIN, backbone=RESNET18), "backbone.name=resnet18"),
        (replace(TWO_STAGE, hidden_dim=128), "hidden_dim=128"),
        (replace(TWO_STAGE, queries="mixed"), "queries=mixed"),
    ],
)
def test_models_that_the_authors_do_not_have(
    config: ModelConfig, field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expect_refusal(config, field, "authors", tmp_path, monkeypatch)


def expect_refusal(
    config: ModelConfig, field: str, to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint(nn.Identity(), config, CLASSES, DataConfig(), "detr_r50")
    monkeypatch.setattr("deformable_detr.checkpoint.convert.load", lambda source: checkpoint)
    with pytest.raises(UserError, match=f"model.{field} cannot be written as a checkpoint of"):
        convert("model", tmp_path / "out.pth", to)
    assert not any(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_text("precious")
    with pytest.raises(UserError, match=r"model\.pth already exists"):
        convert("anything", tmp_path / "model.pth", "authors")
    assert (tmp_path / "model.pth").read_text() == "precious"


def test_wrong_formats_and_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no format onnx: choose one of native, authors, transformers"):
        convert("anything", tmp_path / "out", "onnx")
    with pytest.raises(UserError, match=r"files NAME\.pth"):
        convert("anything", tmp_path / "out", "authors")
    with pytest.raises(UserError, match="there is no model"):
        convert(tmp_path / "nothing", tmp_path / "out", "native")

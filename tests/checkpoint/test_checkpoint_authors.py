"""The authors' .pth files, in both directions (specification §8)."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deformable_detr.checkpoint import Checkpoint, authors, class_table_for, load
from deformable_detr.checkpoint.correspondence import to_ours, to_theirs
from deformable_detr.checkpoint.families import family_of, resnet_of
from deformable_detr.config import TORCHVISION_RESNETS, BackboneConfig, ModelConfig, recipe
from deformable_detr.detections import ClassTable
from deformable_detr.errors import UserError
from deformable_detr.models import build_model
from tests.support.small_models import (
    assert_same_weights,
    random_checkpoint,
    small_config,
    smallest_detr,
)

pytestmark = pytest.mark.usefixtures("one_thread")

DEFORMABLE = "deformable_detr_r50"
# entries with duplicates, elements (specification §8.3; no element total is known for DETR)
FILES = {
    DEFORMABLE: (561, 40_955_900),
    f"{DEFORMABLE}_single_scale": (549, 34_952_828),
    f"{DEFORMABLE}_refine": (597, 41_751_572),
    f"{DEFORMABLE}_two_stage": (630, 42_379_762),
    "detr_r50": (458, None),
}


def exported(config: ModelConfig) -> dict[str, Tensor]:
    """The authors' state dict of a model, shapes only."""
    with torch.device("meta"):
        state = build_model(config).state_dict()
    return to_theirs(state, authors.NAMINGS[family_of(config, "test")].correspondences(config, state))


@pytest.mark.parametrize("name", FILES)
def test_entries_are_the_authors(name: str) -> None:
    entries, elements = FILES[name]
    state = exported(recipe(name).model)
    assert len(state) == entries
    if elements is not None:
        assert sum(tensor.numel() for tensor in state.values()) == elements
    assert sum(key.startswith("backbone.") for key in state) == 265
    assert set(state) == authors_names(recipe(name).model)


def authors_names(config: ModelConfig) -> set[str]:
    """The names that specification §8.2 lists, written out by loops. ResNet-50 only."""
    parameters = ("weight", "bias")
    attention = ["in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"]
    deformable = [
        f"{part}.{leaf}"
        for part in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
        for leaf in parameters
    ]
    mlp = [f"layers.{i}.{leaf}" for i in range(3) for leaf in parameters]
    statistics = ("weight", "bias", "running_mean", "running_var")

    names = {"backbone.0.body.conv1.weight"} | {f"backbone.0.body.bn1.{leaf}" for leaf in statistics}
    for layer, blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(blocks):
            prefix = f"backbone.0.body.layer{layer}.{block}"
            for i in (1, 2, 3):
                names |= {f"{prefix}.conv{i}.weight"} | {f"{prefix}.bn{i}.{leaf}" for leaf in statistics}
            if block == 0:
                names |= {f"{prefix}.downsample.0.weight"}
                names |= {f"{prefix}.downsample.1.{leaf}" for leaf in statistics}

    is_detr = config.attention == "dense"
    for stack, count, norms in (
        ("encoder", config.encoder_layers, ("norm1", "norm2")),
        ("decoder", config.decoder_layers, ("norm1", "norm2", "norm3")),
    ):
        for i in range(count):
            prefix = f"transformer.{stack}.layers.{i}"
            if stack == "encoder":
                names |= {f"{prefix}.self_attn.{leaf}" for leaf in (attention if is_detr else deformable)}
            else:
                names |= {f"{prefix}.self_attn.{leaf}" for leaf in attention}
                cross = "multihead_attn" if is_detr else "cross_attn"
                names |= {f"{prefix}.{cross}.{leaf}" for leaf in (attention if is_detr else deformable)}
            names |= {
                f"{prefix}.{part}.{leaf}" for part in ("linear1", "linear2", *norms) for leaf in parameters
            }

    if is_detr:
        names |= {
            f"{part}.{leaf}" for part in ("input_proj", "transformer.decoder.norm") for leaf in parameters
        }
        names |= {f"class_embed.{leaf}" for leaf in parameters} | {f"bbox_embed.{leaf}" for leaf in mlp}
        return names | {"query_embed.weight"}

    names |= {"transformer.level_embed"}
    for i in range(config.num_levels):
        names |= {f"input_proj.{i}.{part}.{leaf}" for part in (0, 1) for leaf in parameters}
    two_stage = config.queries == "proposals"
    if two_stage:
        own = ("enc_output", "enc_output_norm", "pos_trans", "pos_trans_norm")
        names |= {f"transformer.{part}.{leaf}" for part in own for leaf in parameters}
    else:
        names |= {f"transformer.reference_points.{leaf}" for leaf in parameters} | {"query_embed.weight"}
    for i in range(config.decoder_layers + two_stage):
        classes = {f"class_embed.{i}.{leaf}" for leaf in parameters}
        boxes = {f"bbox_embed.{i}.{leaf}" for leaf in mlp}
        names |= classes | boxes
        if config.refine_references:
            names |= {f"transformer.decoder.{name}" for name in boxes}
        if two_stage:
            names |= {f"transformer.decoder.{name}" for name in classes}
    return names


def test_norms_are_numbered_as_the_authors_do() -> None:
    """Deformable DETR's cross-attention comes second and has norm1 (specification §3.3)."""
    norms = ("self_norm", "cross_norm", "feedforward.norm")
    for family, numbers in (("detr", (1, 2, 3)), ("deformable_detr", (2, 1, 3))):
        for norm, number in zip(norms, numbers, strict=True):
            theirs = authors.NAMINGS[family].rename(f"decoder.layers.4.{norm}.weight")
            assert theirs == f"transformer.decoder.layers.4.norm{number}.weight"


VARIANTS = {
    "detr": small_config("detr_r50", backbone=BackboneConfig("resnet34")),
    "plain": small_config(DEFORMABLE, num_heads=4, num_points=2, num_levels=3, num_classes=91, dropout=0.0),
    "refine": small_config(f"{DEFORMABLE}_refine", num_levels=5),
    "two_stage": small_config(f"{DEFORMABLE}_two_stage"),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_round_trip(name: str, tmp_path: Path) -> None:
    config = VARIANTS[name]
    classes = class_table_for(91)
    if config.num_classes == 5:
        classes = ClassTable(("ant", "bee", None, "cat", "dog"), (5, 4, 3, 2, 10))
    original = random_checkpoint(config, classes)
    authors.save(tmp_path / "model.pth", original)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]
    found = load(tmp_path / "model.pth")
    assert_same_weights(found.model, original.model)
    assert replace(found, model=original.model) == original


@pytest.mark.parametrize("name", VARIANTS)
def test_class_heads_have_the_rows_of_the_authors_coco(name: str) -> None:
    """Their code builds 91 classes for `--dataset_file coco`, and a label there is the raw category id."""
    config = replace(VARIANTS[name], num_classes=5)
    classes = ClassTable(("ant", "bee", None, "cat", "dog"), (5, 4, 3, 2, 90))
    original = random_checkpoint(config, classes)
    content = authors.content_of(original)
    no_object = int(config.attention == "dense")
    sizes = {len(value) for key, value in content["model"].items() if "class_embed" in key}
    assert sizes == {91 + no_object}
    assert content["args"].dataset_file == "coco"
    with torch.no_grad():
        pixels = torch.randn(1, 3, 64, 64)
        logits = original.model([pixels[0]]).predictions[-1].logits
        theirs = build_model(replace(config, num_classes=91))
        shapes = {key: value.shape for key, value in theirs.state_dict().items()}
        naming = authors.NAMINGS[family_of(config, "test")]
        names = naming.correspondences(replace(config, num_classes=91), shapes)
        theirs.load_state_dict(to_ours(content["model"], names, shapes))
        spread = theirs.eval()([pixels[0]]).predictions[-1].logits
    torch.testing.assert_close(spread[..., list(classes.category_ids)], logits[..., :5], atol=1e-5, rtol=0)
    unused = sorted(set(range(91)) - set(classes.category_ids))
    assert float(spread[..., unused].max()) == -50
    if no_object:
        torch.testing.assert_close(spread[..., -1], logits[..., -1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("category_id", [91, 2024, -1])
def test_ids_that_the_authors_have_no_row_for_are_refused(category_id: int, tmp_path: Path) -> None:
    classes = ClassTable(("ant", "bee", "cat", "dog", "emu"), (0, 1, 2, 3, category_id))
    with pytest.raises(UserError, match=f"id {category_id} cannot be written"):
        authors.save(tmp_path / "model.pth", random_checkpoint(VARIANTS["refine"], classes))
    assert not any(tmp_path.iterdir())


def test_resnets_are_known_by_their_shapes() -> None:
    for name in TORCHVISION_RESNETS:
        state = exported(small_config("detr_r50", backbone=BackboneConfig(name)))
        body = "backbone.0.body."
        shapes = {key.removeprefix(body): value.shape for key, value in state.items() if key.startswith(body)}
        assert resnet_of(shapes) == name


def test_shared_heads_share_memory_in_the_file() -> None:
    """As in the authors' own files."""
    state = authors.content_of(random_checkpoint(VARIANTS["plain"]))["model"]
    assert state["class_embed.0.weight"].data_ptr() == state["class_embed.1.weight"].data_ptr()
    assert state["query_embed.weight"].shape == (7, 64)


@pytest.fixture(scope="module")
def detr() -> Checkpoint:
    return random_checkpoint(smallest_detr())


@pytest.fixture(scope="module")
def detr_of_coco() -> Checkpoint:
    return random_checkpoint(replace(smallest_detr(), num_classes=91))


@pytest.fixture(scope="module")
def two_stage() -> Checkpoint:
    return random_checkpoint(VARIANTS["two_stage"])


@pytest.fixture
def load_changed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Checkpoint]:
    """load_changed(checkpoint, change): what is read from the authors' file of a checkpoint after `change`
    of its content, without the time that disks take."""

    def run(
        checkpoint: Checkpoint, change: Callable[[dict[str, Any]], object], name: str = "model.pth"
    ) -> Checkpoint:
        content = authors.content_of(checkpoint)
        change(content)
        monkeypatch.setattr(authors, "read_pickle", lambda path: content)
        (tmp_path / name).touch()
        return load(tmp_path / name)

    return run


def without_options(content: dict[str, Any]) -> None:
    del content["args"]


class TestFilesWithoutOptions:
    """The published DETR files hold nothing but weights."""

    def test_what_tensors_cannot_say_is_the_papers(
        self, two_stage: Checkpoint, load_changed: Callable[..., Checkpoint]
    ) -> None:
        found = load_changed(two_stage, without_options)
        # Their file has a row for each of COCO's ids, used or not: only the options say which are.
        assert found.config == replace(two_stage.config, num_queries=300, num_classes=91)
        assert found.classes == class_table_for(91)

    def test_bare_state_dict(self, detr_of_coco: Checkpoint, tmp_path: Path) -> None:
        torch.save(authors.content_of(detr_of_coco)["model"], tmp_path / "model.pth")
        assert_same_weights(load(tmp_path / "model.pth").model, detr_of_coco.model)

    def test_dilation_is_in_the_published_names(self, load_changed: Callable[..., Checkpoint]) -> None:
        checkpoint = random_checkpoint(small_config("detr_r50"))
        found = load_changed(checkpoint, without_options, "detr-r50-dc5-f0fb7ef5.pth")
        assert found.config.backbone == BackboneConfig("resnet50", dilation=True)
        assert found.recipe == "detr_r50_dc5"

    def test_options_are_believed_more_than_names(
        self, detr: Checkpoint, load_changed: Callable[..., Checkpoint]
    ) -> None:
        assert not load_changed(detr, lambda content: None, "dc5.pth").config.backbone.dilation


def test_a_training_checkpoint_of_the_authors(detr_of_coco: Checkpoint, tmp_path: Path) -> None:
    """With optimizer, scheduler, and options that we do not know; before and after PyTorch 1.6."""
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(2)).sum().backward()
    optimizer.step()
    content = authors.content_of(detr_of_coco)
    options = vars(content["args"])
    del options["class_names"], options["category_ids"]
    content["args"] = argparse.Namespace(**options, lr_backbone_names=["backbone.0"], resume="", gpu=0)
    content["optimizer"] = optimizer.state_dict()
    content["lr_scheduler"] = torch.optim.lr_scheduler.StepLR(optimizer, 40).state_dict()
    content["epoch"] = 49
    for zipped in (True, False):
        torch.save(content, tmp_path / "model.pth", _use_new_zipfile_serialization=zipped)
        assert_same_weights(load(tmp_path / "model.pth").model, detr_of_coco.model)


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def with_tensor(name: str, *shape: int) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["model"].update({name: torch.ones(shape)})


def without_tensor(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["model"].__delitem__(name)


def with_option(name: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda content: setattr(content["args"], name, value)


class TestRefusals:
    def test_code_in_the_file_is_not_run(self, tmp_path: Path) -> None:
        trap = tmp_path / "sprung"
        torch.save({"model": {}, "args": argparse.Namespace(hook=Malicious(trap))}, tmp_path / "model.pth")
        with pytest.raises(UserError, match=r"run code .*state dict"):
            load(tmp_path / "model.pth")
        assert not trap.exists()

    @pytest.mark.parametrize(
        ("content", "sentence"),
        [
            ([1, 2], "holds a list, not a checkpoint"),
            ({"model": {"epoch": 3}}, "no state dict under the key model"),
            ({"layer1.weight": torch.ones(1)}, "not a checkpoint of Deformable DETR or DETR"),
        ],
    )
    def test_something_else(self, content: Any, sentence: str, tmp_path: Path) -> None:
        torch.save(content, tmp_path / "model.pth")
        with pytest.raises(UserError, match=sentence):
            load(tmp_path / "model.pth")

    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            (with_tensor("detr.mask_head.lay1.weight", 1), "segmentation model"),
            (with_tensor("transformer.encoder.norm.weight", 32), "trained with --pre_norm"),
            (
                with_tensor("backbone.1.row_embed.weight", 50, 16),
                r"model\.pth: .* 1 unknown \(backbone\.1\.row_embed\.weight\)",
            ),
            (
                without_tensor("bbox_embed.layers.1.bias"),
                r"1 missing \(bbox_embed\.layers\.1\.bias\)",
            ),
            (
                with_tensor("input_proj.bias", 31),
                r"1 of another shape \(input_proj\.bias \(31,\) instead of \(32,\)\)",
            ),
            (
                without_tensor("transformer.decoder.layers.0.linear1.weight"),
                r"there is no matrix transformer\.decoder\.layers\.0\.linear1\.weight",
            ),
            (without_tensor("backbone.0.body.bn1.bias"), "backbone of 99 tensors is none of resnet18"),
            (with_option("class_names", ["a"]), r"has 5 classes .* holds 1 names"),
            (with_option("nheads", 5), r"model\.pth: model\.hidden_dim .* divisible"),
        ],
    )
    def test_detr(
        self, change: Any, sentence: str, detr: Checkpoint, load_changed: Callable[..., Checkpoint]
    ) -> None:
        with pytest.raises(UserError, match=sentence):
            load_changed(detr, change)

    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            (
                with_tensor("transformer.decoder.class_embed.2.bias", 5),
                r"class_embed\.2\.bias and transformer\.decoder\.class_embed\.2\.bias differ",
            ),
            (with_option("nheads", 256), "not a multiple of 256 heads x 4 levels"),
        ],
    )
    def test_two_stage(
        self, change: Any, sentence: str, two_stage: Checkpoint, load_changed: Callable[..., Checkpoint]
    ) -> None:
        with pytest.raises(UserError, match=sentence):
            load_changed(two_stage, change)

    def test_a_cut_off_file(self, detr: Checkpoint, tmp_path: Path) -> None:
        path = tmp_path / "model.pth"
        authors.save(path, detr)
        path.write_bytes(path.read_bytes()[:-5000])
        with pytest.raises(UserError, match=r"model\.pth cannot be read as a PyTorch file"):
            load(path)

"""transformers' checkpoint folders, as transformers itself writes and reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from deformable_detr.checkpoint import Checkpoint, load
from deformable_detr.checkpoint.transformers_names import NAMINGS, hub_name
from deformable_detr.config import DataConfig
from deformable_detr.errors import UserError
from tests.support.foreign_models import saved_and_loaded, small_transformers_model
from tests.support.small_models import assert_same_weights

pytestmark = pytest.mark.usefixtures("one_thread")

TWO_STAGE = {"with_box_refine": True, "two_stage": True}


@pytest.fixture(scope="module")
def detr() -> nn.Module:
    return small_transformers_model("detr")


@pytest.fixture(scope="module")
def detr_folder(detr: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detr") / "model"
    detr.save_pretrained(folder)
    return folder


@pytest.fixture
def edited(detr_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """edited(**changes): the DETR folder with other fields in config.json; the weights are a link."""

    def copy(**changes: object) -> Path:
        values = json.loads((detr_folder / "config.json").read_text()) | changes
        (tmp_path / "config.json").write_text(json.dumps(values))
        (tmp_path / "model.safetensors").symlink_to(detr_folder / "model.safetensors")
        return tmp_path

    return copy


def names_in(path: Path) -> set[str]:
    with safe_open(path, "pt") as file:
        return set(file.keys())


@pytest.mark.parametrize(
    ("family", "options"),
    [("detr", {}), ("deformable_detr", TWO_STAGE)],
    ids=["detr", "two_stage"],
)
class TestNames:
    def test_both_generations_are_read(self, family: str, options: dict[str, Any], tmp_path: Path) -> None:
        """`save_pretrained` writes the names of the hub; the model in memory has those of transformers 5."""
        model = small_transformers_model(family, **options)
        expected = saved_and_loaded(model)
        model.config.save_pretrained(tmp_path)
        in_memory = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        assert any(".mlp.fc1." in name for name in in_memory)
        save_file(in_memory, tmp_path / "model.safetensors")
        assert_same_weights(load(tmp_path).model, expected.model)

    def test_names_are_those_of_transformers_files(
        self, family: str, options: dict[str, Any], tmp_path: Path
    ) -> None:
        model = small_transformers_model(family, timm=True, **options)
        model.save_pretrained(tmp_path)
        theirs = names_in(tmp_path / "model.safetensors")
        assert any(name.startswith("model.backbone.conv_encoder.model.layer1.") for name in theirs)
        assert any(name.endswith("layers.0.fc1.weight") for name in theirs)
        assert {hub_name(name) for name in theirs} == theirs
        assert theirs <= {hub_name(name) for name in model.state_dict()}

        checkpoint = load(tmp_path)
        ours = checkpoint.model.state_dict()
        known = {
            name
            for item in NAMINGS[family].correspondences(checkpoint.config, ours)
            for part in item.theirs
            for name in part
        }
        assert theirs <= known


def test_names_of_transformers_own_resnet() -> None:
    prefix = "model.backbone.model."
    hub = "model.backbone.conv_encoder.model."
    for theirs, expected in {
        "embedder.embedder.convolution.weight": "conv1.weight",
        "embedder.embedder.normalization.running_mean": "bn1.running_mean",
        "encoder.stages.2.layers.5.layer.0.convolution.weight": "layer3.5.conv1.weight",
        "encoder.stages.3.layers.0.layer.2.normalization.bias": "layer4.0.bn3.bias",
        "encoder.stages.0.layers.0.shortcut.convolution.weight": "layer1.0.downsample.0.weight",
        "encoder.stages.0.layers.0.shortcut.normalization.bias": "layer1.0.downsample.1.bias",
    }.items():
        assert hub_name(prefix + theirs) == hub_name(hub + theirs) == hub + expected


class TestHeadsOfRefinement:
    """Transformers 5 ties the class heads of one-stage models with refinement, the authors do not."""

    def test_tied(self) -> None:
        heads = saved_and_loaded(
            small_transformers_model("deformable_detr", with_box_refine=True)
        ).model.decoder.heads
        assert len(heads) == 3
        assert torch.equal(heads[0].class_head.weight, heads[2].class_head.weight)
        assert not torch.equal(heads[0].box_head[0].weight, heads[2].box_head[0].weight)

    def test_a_file_of_the_hub_has_all_of_them(self, tmp_path: Path) -> None:
        model = small_transformers_model("deformable_detr", with_box_refine=True)
        model.save_pretrained(tmp_path)
        state = load_file(tmp_path / "model.safetensors")
        for layer in range(3):
            state[f"class_embed.{layer}.weight"] = torch.full((5, 32), float(layer))
            state[f"class_embed.{layer}.bias"] = torch.full((5,), float(layer))
        save_file(state, tmp_path / "model.safetensors")
        heads = load(tmp_path).model.decoder.heads
        assert [head.class_head.bias[0].item() for head in heads] == [0.0, 1.0, 2.0]


class TestFiles:
    def test_shards(self, detr: nn.Module, detr_folder: Path, tmp_path: Path) -> None:
        detr.save_pretrained(tmp_path, max_shard_size="20MB")
        assert (tmp_path / "model.safetensors.index.json").is_file()
        assert_same_weights(load(tmp_path).model, load(detr_folder).model)

    def test_pytorch_file_in_half_precision(self, detr_folder: Path, tmp_path: Path) -> None:
        state = load_file(detr_folder / "model.safetensors")
        torch.save({name: tensor.half() for name, tensor in state.items()}, tmp_path / "pytorch_model.bin")
        (tmp_path / "config.json").write_bytes((detr_folder / "config.json").read_bytes())
        found, expected = load(tmp_path).model.state_dict(), load(detr_folder).model.state_dict()
        for name, tensor in found.items():
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, expected[name].half().float())

    def test_no_weights(self, detr_folder: Path, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_bytes((detr_folder / "config.json").read_bytes())
        with pytest.raises(UserError, match=r"holds no weights: expected model\.safetensors"):
            load(tmp_path)

    def test_a_model_without_heads(self, detr: nn.Module, tmp_path: Path) -> None:
        detr.model.save_pretrained(tmp_path)
        with pytest.raises(UserError, match="this is a DetrModel: only DetrForObjectDetection"):
            load(tmp_path)


class TestClasses:
    def test_names(self, edited: Callable[..., Path]) -> None:
        checkpoint = load(edited(id2label={"0": "N/A", "1": "person", "2": "car", "3": "N/A", "4": "cat"}))
        assert checkpoint.classes.names == (None, "person", "car", None, "cat")
        assert checkpoint.classes.category_ids == (0, 1, 2, 3, 4)

    def test_of_two_nameless_classes_files_say_nothing(self) -> None:
        checkpoint = saved_and_loaded(small_transformers_model("detr", num_labels=2))
        assert checkpoint.classes.names in (("LABEL_0", "LABEL_1"), ("class 0", "class 1"))

    def test_too_few_names(self, edited: Callable[..., Path]) -> None:
        with pytest.raises(UserError, match="5 classes, but id2label names 1"):
            load(edited(id2label={"0": "a"}))


class TestPreprocessing:
    def with_preprocessor(self, folder: Path, **values: object) -> Checkpoint:
        (folder / "preprocessor_config.json").write_text(json.dumps(values))
        return load(folder)

    def test_none(self, detr_folder: Path) -> None:
        assert load(detr_folder).data == DataConfig()

    def test_edges(self, edited: Callable[..., Path]) -> None:
        data = self.with_preprocessor(
            edited(),
            size={"shortest_edge": 640, "longest_edge": 900},
            image_mean=[0.5, 0.4, 0.3],
            image_std=[0.2, 0.2, 0.1],
        ).data
        assert (data.image_size, data.max_size) == (640, 900)
        assert (data.mean, data.std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))

    def test_files_of_2022(self, edited: Callable[..., Path]) -> None:
        data = self.with_preprocessor(edited(), size=800, max_size=1333, do_resize=True).data
        assert data == DataConfig()

    def test_a_size_of_2022_above_the_papers_maximum(self, edited: Callable[..., Path]) -> None:
        data = self.with_preprocessor(edited(), size=1600).data
        assert (data.image_size, data.max_size) == (1600, 1600)

    @pytest.mark.parametrize("values", [{"size": {"height": 640, "width": 640}}, {"do_resize": False}])
    def test_unsupported_preprocessing_is_refused(
        self, values: dict[str, Any], edited: Callable[..., Path]
    ) -> None:
        with pytest.raises(UserError, match=r"preprocessor_config\.json resizes pictures"):
            self.with_preprocessor(edited(), **values)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"model_type": "conditional_detr"},
            "of type conditional_detr: only detr",
        ),
        ({"activation_function": "gelu"}, "activation_function=gelu: only relu"),
        ({"position_embedding_type": "learned"}, "position_embedding_type=learned: only sine"),
        ({"encoder_attention_heads": 2}, "different numbers of heads"),
        ({"backbone_config": {"model_type": "swin"}}, "the backbone swin with options"),
        (
            {"backbone_config": {"model_type": "resnet", "downsample_in_bottleneck": True}},
            "the backbone resnet",
        ),
        ({"backbone_config": None, "backbone": "resnetblur50"}, "the backbone resnetblur50"),
        (
            {"backbone_config": {"model_type": "timm_backbone", "backbone": "resnet18", "output_stride": 8}},
            "the backbone resnet18 with options",
        ),
    ],
)
def test_options_that_are_not_supported(
    changes: dict[str, Any], sentence: str, edited: Callable[..., Path]
) -> None:
    with pytest.raises(UserError, match=sentence):
        load(edited(**changes))


@pytest.mark.parametrize(
    ("changes", "dilation"),
    [
        ({"backbone_config": None, "backbone": "resnet18", "use_timm_backbone": True}, False),
        ({"backbone_config": {"model_type": "timm_backbone", "backbone": "resnet18.a1_in1k"}}, False),
        ({"backbone_config": None, "use_timm_backbone": False, "dilation": True}, False),
    ],
    ids=["hub", "timm's tag", "transformers' own"],
)
def test_backbones_by_name(changes: dict[str, Any], dilation: bool, edited: Callable[..., Path]) -> None:
    backbone = load(edited(**changes)).config.backbone
    assert (backbone.name, backbone.dilation) == ("resnet18", dilation)

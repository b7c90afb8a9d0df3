"""Files of other projects with values of the wrong type: refused in one sentence that names the file."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from deformable_detr.checkpoint import load
from deformable_detr.checkpoint.contents import empty_model, load_state
from deformable_detr.checkpoint.description import Description
from deformable_detr.checkpoint.native import read_safetensors
from deformable_detr.config import BackboneConfig
from deformable_detr.detections import ClassTable
from deformable_detr.errors import UserError
from tests.support.small_models import smallest_detr

HEAD = {"class_embed.0.weight": torch.zeros(91, 4)}


def args(**values: Any) -> argparse.Namespace:
    return argparse.Namespace(
        **{"class_names": ["cat"], "category_ids": [1], "dataset_file": "coco"} | values
    )


@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.parametrize(
    "content",
    [
        {1: torch.zeros(1)},
        {"model": {1: torch.zeros(1)}},
        {"model": {"transformer.level_embed": torch.zeros(2, 2).to_sparse()}},
        {"model": {"transformer.level_embed": torch.zeros(2, 2, device="meta")}},
        {"model": HEAD, "args": args(category_ids=None)},
        {"model": HEAD, "args": args(category_ids=[10**9])},
        {"model": HEAD, "args": argparse.Namespace(class_names=["cat"], dataset_file="coco")},
    ],
)
def test_authors_files_with_other_values(content: Any, tmp_path: Path) -> None:
    file = tmp_path / "model.pth"
    torch.save(content, file)
    with pytest.raises(UserError) as raised:
        load(file)
    assert str(file) in str(raised.value)


@pytest.mark.parametrize(
    ("config", "index"),
    [
        ({"architectures": 5}, {}),
        ({"architectures": None}, {}),
        ({}, {"weight_map": [1]}),
        ({}, {"weight_map": {"a": 1}}),
        ({}, {"weight_map": {"a": ["x"]}}),
    ],
)
def test_transformers_folders_with_other_values(config: Any, index: Any, tmp_path: Path) -> None:
    values = {"model_type": "deformable_detr", **config}
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError) as raised:
        load(tmp_path)
    assert str(tmp_path) in str(raised.value)


@pytest.mark.parametrize(
    ("names", "ids"), [((1,), (1,)), (("cat",), ("1",)), (("cat",), (1.0,)), (("cat",), (2**63,))]
)
def test_class_tables_of_other_types(names: Any, ids: Any) -> None:
    with pytest.raises(TypeError):
        ClassTable(names, ids)


def test_a_version_of_another_type_is_quoted() -> None:
    with pytest.raises(UserError, match="format version '1', but"):
        Description.from_dict({"format_version": "1"}, "config.json")


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64])
def test_weights_of_another_type_are_not_cast(dtype: torch.dtype) -> None:
    model = empty_model(smallest_detr())
    state = model.state_dict()
    name = next(iter(state))
    with pytest.raises(UserError, match=f"{name} is {dtype}"):
        load_state(model, {**state, name: state[name].to(dtype)})


def test_a_model_folder_cannot_name_an_address_as_its_backbone() -> None:
    for name in ("hf-hub:someone/model", "local-dir:/etc", "../model"):
        with pytest.raises(UserError, match=r"model\.backbone\.name"):
            BackboneConfig(name)


def test_a_pipe_instead_of_weights(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="is a pipe"):
        read_safetensors(tmp_path / "model.safetensors")

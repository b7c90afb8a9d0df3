"""The package's own checkpoint: a folder with `model.safetensors` and `config.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..errors import UserError
from ..files import check_readable, read_json, replacing
from .contents import Checkpoint, blaming, empty_model, load_state
from .decision import Decision
from .description import DECISION, Description

FORMAT = "deformable_detr"
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"


def save(folder: str | Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint folder completely or not at all; on failure, the previous content is restored.

    An existing checkpoint is replaced. If only the weights change, as in training, the replacement is one
    atomic step.

    Raises:
        UserError: if `folder` exists and is neither a checkpoint of this package nor empty, or if it cannot
            be written.
    """
    folder = Path(folder).expanduser().resolve()
    assert len(checkpoint.classes) == checkpoint.config.num_classes
    description = _text(checkpoint.description.to_dict(FORMAT))
    _refuse_to_destroy(folder)
    state = {name: tensor.contiguous() for name, tensor in checkpoint.model.state_dict().items()}
    if is_native(folder) and (folder / CONFIG_FILE).read_text(encoding="utf-8") == description:
        with replacing(folder / WEIGHTS_FILE, drafts_in=folder.parent) as draft:
            save_file(state, draft, metadata={"format": "pt"})
        return
    with replacing(folder) as draft:
        draft.mkdir()
        save_file(state, draft / WEIGHTS_FILE, metadata={"format": "pt"})
        (draft / CONFIG_FILE).write_text(description, encoding="utf-8")


def load(folder: Path) -> Checkpoint:
    """Read a checkpoint folder.

    Raises:
        UserError: if the folder is incomplete or damaged, was written by a newer version of the package, or
            has a backbone that the installed version of timm lacks.
    """
    description = read_json(folder / CONFIG_FILE)
    where = folder / CONFIG_FILE
    known = Description.from_dict(description, where)
    model = empty_model(known.config)
    state = read_safetensors(folder / WEIGHTS_FILE)
    with blaming(folder):
        load_state(model, state)
    return Checkpoint(model, known.config, known.classes, known.data, known.recipe, known.decision)


def save_decision(folder: Path, decision: Decision) -> None:
    """Write a decision to the `config.json` of a checkpoint in one atomic step, without reading the weights.

    Raises:
        UserError: if the file is damaged, was written by a newer version, or cannot be written.
    """
    path = folder / CONFIG_FILE
    content = read_json(path)
    known = Description.from_dict({**content, DECISION: decision.to_dict()}, path)
    content = known.to_dict(FORMAT) | {"versions": content["versions"]}
    with replacing(path, drafts_in=folder.parent) as draft:
        draft.write_text(_text(content), encoding="utf-8")


def is_native(folder: Path) -> bool:
    """Return True if a folder is a checkpoint of this package.

    Raises:
        UserError: if the folder has a `config.json` that is not a JSON object or cannot be read.
    """
    path = folder / CONFIG_FILE
    return path.is_file() and read_json(path).get("format") == FORMAT


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a safetensors file by name.

    Raises:
        UserError: if the file cannot be read.
    """
    check_readable(path)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as a safetensors file ({error}).") from error


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _refuse_to_destroy(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file, but a checkpoint is a folder: choose another name.")
    others = sorted({path.name for path in folder.iterdir()} - {WEIGHTS_FILE, CONFIG_FILE})
    if others or (any(folder.iterdir()) and not is_native(folder)):
        raise UserError(
            f"{folder} holds files that do not belong to a checkpoint of this package "
            f"({', '.join(others[:3]) or CONFIG_FILE}), which saving would destroy: choose another folder."
        )

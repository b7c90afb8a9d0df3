"""Checkpoints in the package's own format and in those of the authors and of Hugging Face transformers.

Conversions between the formats keep every bit of float32 weights. Names are imported on first use, because
an exported model needs only `Description`, which does not import PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .coco_classes import class_table_for
    from .contents import Checkpoint
    from .decision import Decision
    from .description import Description
    from .native import save, save_decision
    from .sources import checkpoint_folder, load

__all__ = [
    "Checkpoint",
    "Decision",
    "Description",
    "checkpoint_folder",
    "class_table_for",
    "load",
    "save",
    "save_decision",
]

_HOMES = {
    "Checkpoint": "contents",
    "Decision": "decision",
    "Description": "description",
    "checkpoint_folder": "sources",
    "class_table_for": "coco_classes",
    "load": "sources",
    "save": "native",
    "save_decision": "native",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)

"""Checkpoints in the package's own format and in those of the authors and of Hugging Face transformers.

Conversions between the formats do not change a bit of the weights. Names are imported on first use, because
an exported model needs only `Description`, which does not import PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .coco_classes import class_table_for
    from .contents import Checkpoint
    from .description import Description
    from .native import save
    from .sources import load

__all__ = ["Checkpoint", "Description", "class_table_for", "load", "save"]

_HOMES = {
    "Checkpoint": "contents",
    "Description": "description",
    "class_table_for": "coco_classes",
    "load": "sources",
    "save": "native",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)

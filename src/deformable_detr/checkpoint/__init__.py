"""Checkpoints: the package's own, and those of the authors and of Hugging Face transformers. Models are
converted between them without changing a bit of their weights.
"""

from .coco_classes import class_table_for
from .contents import Checkpoint
from .description import Description
from .native import save
from .sources import load

__all__ = ["Checkpoint", "Description", "class_table_for", "load", "save"]

"""Checkpoints in the package's own format and in those of the authors and of Hugging Face transformers.

Conversions between the formats do not change a bit of the weights.
"""

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

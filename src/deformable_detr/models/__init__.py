"""The parts of the paper's models. Only `build.py` decides which of them a model uses."""

from .backbone import register_backbone
from .build import build_model, register_queries
from .model import DetectionModel, copy_on_same_memory

__all__ = ["DetectionModel", "build_model", "copy_on_same_memory", "register_backbone", "register_queries"]

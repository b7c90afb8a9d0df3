"""The models of the paper, as parts. `build.py` is the only place that chooses among them."""

from .build import build_model
from .model import DetectionModel

__all__ = ["DetectionModel", "build_model"]

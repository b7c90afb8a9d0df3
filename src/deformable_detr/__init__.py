"""Deformable DETR: training, evaluation and prediction on a CPU or a GPU.

    import deformable_detr as dd
    detector = dd.load("runs/x")
    detections = detector.predict("a.jpg", threshold=0.4)

Names are imported on first use, so that `import deformable_detr` and `deformable-detr --help` are fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import ops
    from .detections import Detections
    from .errors import UserError
    from .evaluation import evaluate
    from .exporter import export
    from .inference.detector import Detector
    from .inference.loading import create, load
    from .training.run import train

    __version__: str

__all__ = ["Detections", "Detector", "UserError", "create", "evaluate", "export", "load", "ops", "train"]

_HOMES = {
    "Detections": "detections",
    "Detector": "inference.detector",
    "UserError": "errors",
    "create": "inference.loading",
    "evaluate": "evaluation",
    "export": "exporter",
    "load": "inference.loading",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    if name == "ops":
        return import_module(".ops", __name__)
    if name == "__version__":
        from importlib.metadata import version

        return version("deformable-detr")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

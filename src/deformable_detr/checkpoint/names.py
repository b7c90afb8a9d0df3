"""The names of the bundled model and of exported files, which are known without loading a model."""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError

DEMO = "demo"  # the bundled model, whereas ./demo is a folder
BUNDLED = Path(__file__).parents[1] / "bundled"
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}  # of exported files, by format
EXPORTED = tuple(SUFFIXES.values())  # inference/exported/ reads all but the last


def demo_pictures() -> list[Path]:
    """Return the sorted paths of the pictures that come with the bundled model.

    The model was not trained on them.
    """
    return sorted((BUNDLED / "pictures").iterdir())


def check_exported_file(to: str, target: Path) -> None:
    """Raise a `UserError` if there is no export format `to`, or if `target` lacks the format's suffix."""
    if to not in SUFFIXES:
        raise UserError(f"--to must be one of {', '.join(SUFFIXES)}, not {to}.")
    if target.suffix != SUFFIXES[to]:
        raise UserError(f"--to {to} writes a {SUFFIXES[to]} file: name one, not {target}.")

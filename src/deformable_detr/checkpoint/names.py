"""The bundled model, and the suffixes of exported files: what can be known of a MODEL without loading it."""

from __future__ import annotations

from pathlib import Path

DEMO = "demo"  # the bundled model, whereas ./demo is a folder
BUNDLED = Path(__file__).parents[1] / "bundled"
EXPORTED = (".onnx", ".xml", ".pt2")  # inference/exported/ reads all but the last


def demo_pictures() -> list[Path]:
    """Return the pictures that accompany the bundled model, which was not trained on them."""
    return sorted((BUNDLED / "pictures").iterdir())

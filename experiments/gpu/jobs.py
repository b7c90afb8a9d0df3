"""The drawing of the data sets, in parallel with the steps that prove and before those that measure."""

from __future__ import annotations

import time
from pathlib import Path

from deformable_detr.data.drawn import generate

TRAIN_PICTURES, VAL_PICTURES = 1600, 100
PATIENCE_SECONDS = 120.0
IMAGE_SIZE = (120, 160)


def draw_small(work: Path, quick: bool) -> None:
    """Draw the data of steps (b) and (c)."""
    train, val = (24, 6) if quick else (96, 24)
    generate(work / "data", train=train, val=val, image_size=IMAGE_SIZE, seed=1)


def draw_large(work: Path) -> None:
    """Draw the data of step (d)."""
    generate(work / "large", train=TRAIN_PICTURES, val=VAL_PICTURES, image_size=IMAGE_SIZE, seed=2)


def large_data(work: Path) -> Path:
    """Wait for the data that `draw_large` draws, and return their folder, which appears once it is complete.

    Raises:
        TimeoutError: if the folder does not appear within PATIENCE_SECONDS.
    """
    started = time.perf_counter()
    while not (work / "large").exists():
        if time.perf_counter() - started > PATIENCE_SECONDS:
            raise TimeoutError("the pictures for this step were not drawn in time")
        time.sleep(0.5)
    return work / "large"

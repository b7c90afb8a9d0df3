"""COCO's three sizes of objects, by area in pixels of the original picture: of the mask, if there is one."""

from __future__ import annotations

import numpy as np

SIZES = ("small", "medium", "large")
SIDES = (32, 96)  # of the squares that part one size from the next
METRIC_LETTERS = dict(zip(SIZES, "sml", strict=True))  # as in APs, ARm


def count_sizes(areas: np.ndarray) -> dict[str, int]:
    """How many of the objects are small (under 32²), medium (under 96²) and large."""
    sizes = np.digitize(areas, np.square(SIDES))
    return dict(zip(SIZES, np.bincount(sizes, minlength=len(SIZES)).tolist(), strict=True))


def size_ranges() -> dict[str, str]:
    """Each size in words: under 32², 32² to 96², 96² or more."""
    small, large = SIDES
    return dict(zip(SIZES, (f"under {small}²", f"{small}² to {large}²", f"{large}² or more"), strict=True))

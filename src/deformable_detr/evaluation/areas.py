"""COCO's three object sizes, by the area of the object (of its mask, if there is one) in pixels."""

from __future__ import annotations

import numpy as np

SIZES = ("small", "medium", "large")
SIDES = (32, 96)  # sides of the squares whose areas separate the sizes
METRIC_LETTERS = dict(zip(SIZES, "sml", strict=True))  # as in APs, ARm


def count_sizes(areas: np.ndarray) -> dict[str, int]:
    """Return the numbers of small (area under 32²), medium (under 96²) and large objects, by size.

    `areas` are the objects' areas in pixels, (number of objects,).
    """
    sizes = np.digitize(areas, np.square(SIDES))
    return dict(zip(SIZES, np.bincount(sizes, minlength=len(SIZES)).tolist(), strict=True))


def size_ranges() -> dict[str, str]:
    """Return a description of each size in words: under 32², 32² to 96², 96² or more."""
    small, large = SIDES
    return dict(zip(SIZES, (f"under {small}²", f"{small}² to {large}²", f"{large}² or more"), strict=True))

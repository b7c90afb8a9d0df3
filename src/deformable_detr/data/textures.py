"""Textures of the backgrounds of drawn scenes: smooth noise, and patterns that look like wood and floors.

Each texture is (H, W) float32, with the height H and the width W of the picture, and varies the brightness of
a background. Most of its values are in -1..1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image


def cloud(rng: np.random.Generator, size: tuple[int, int], cells: int) -> np.ndarray:
    """Return smooth noise, (H, W) float32 of about -1..1, with `cells` (at least 2) bumps on the short side.

    `size` is (H, W).
    """
    height, width = size
    rows, columns = (max(2, round(cells * side / min(size))) for side in size)
    grid = Image.fromarray(rng.uniform(-1, 1, (rows, columns)).astype(np.float32))
    return np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC))


def _fractal(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    octaves = [cloud(rng, size, cells) / scale for cells, scale in ((4, 1.0), (9, 1.5), (20, 2.0), (45, 3.0))]
    result: np.ndarray = np.sum(octaves, axis=0)
    return result


def _grain(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Return a texture that looks like wood, (H, W) float32: parallel waves that are bent by noise."""
    ys, xs = np.mgrid[: size[0], : size[1]].astype(np.float32)
    angle, period = rng.uniform(0, math.pi), rng.uniform(7, 22)
    along = xs * math.cos(angle) + ys * math.sin(angle) + 14 * cloud(rng, size, 3)
    result: np.ndarray = np.sin(along * (2 * math.pi / period)) + 0.4 * cloud(rng, size, 40)
    return result


def _tiles(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Return a texture that looks like a floor, (H, W) float32: tiles of uneven brightness, dark joints."""
    pitch, joint = int(rng.integers(22, 60)), int(rng.integers(1, 3))
    rows, columns = (side // pitch + 2 for side in size)
    tones = rng.uniform(-0.9, 0.9, (rows, columns)).astype(np.float32)
    tones = tones.repeat(pitch, axis=0).repeat(pitch, axis=1)
    for offset in range(joint):
        tones[offset::pitch] = tones[:, offset::pitch] = -1.6
    shift_y, shift_x = rng.integers(0, pitch, 2).tolist()
    return tones[shift_y : shift_y + size[0], shift_x : shift_x + size[1]] + 0.4 * cloud(rng, size, 40)


TEXTURES: tuple[Callable[[np.random.Generator, tuple[int, int]], np.ndarray], ...] = (
    _fractal,
    _grain,
    _tiles,
)

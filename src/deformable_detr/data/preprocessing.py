"""Conversion of a picture to the model's input with Pillow and NumPy: resizing and normalising.

See specification §1.3. This module does not import PyTorch, so that an exported model can be used
without it. H, W are the height and the width of the picture; h, w those of the model's input.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from ..config import DataConfig


def resized_size(size: tuple[int, int], short: int, max_size: int | None = None) -> tuple[int, int]:
    """Return (H, W) of a picture of `size` (H, W) after its short side has been resized to `short` pixels.

    If the long side would exceed `max_size`, the short side is round(max_size · old short side / old long
    side) instead, and if this is 0, the result is 1 pixel by `max_size`. If `max_size` is None, there is no
    limit. The long side is truncated, not rounded, as it was when the published results were measured.
    Therefore, it may differ by some pixels from the result of torchvision's `Resize`, and exceed `max_size`
    by a few pixels for long strips. A picture whose short side already has the right length keeps its size.
    """
    height, width = size
    old_short, old_long = min(size), max(size)
    if max_size is not None and old_long / old_short * short > max_size:
        short = round(max_size * old_short / old_long)
        if short == 0:  # a strip too thin for the published rule
            return (1, max_size) if height < width else (max_size, 1)
    if old_short == short:
        return size
    long = int(short * old_long / old_short)
    return (short, long) if height < width else (long, short)


def input_size(size: tuple[int, int], config: DataConfig, short: int | None = None) -> tuple[int, int]:
    """Return the model's input size (h, w) for a picture of `size` (H, W).

    It is that of `resized_size`, with each side rounded to the nearest multiple of `config.size_multiple`,
    but never to 0.

    Args:
        short: the length of the short side before rounding; None means `config.image_size`.
    """
    height, width = resized_size(size, config.image_size if short is None else short, config.max_size)
    return _rounded(height, config.size_multiple), _rounded(width, config.size_multiple)


def _rounded(side: int, multiple: int) -> int:
    return max(1, (side + multiple // 2) // multiple) * multiple


def resized(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return the picture resized to `size` (H, W) with Pillow's bilinear filter.

    If the picture becomes smaller, the filter covers more of its pixels, which prevents aliasing. A picture
    that already has this size is returned itself, not a copy.
    """
    height, width = size
    if picture.size == (width, height):
        return picture
    return picture.resize((width, height), Image.Resampling.BILINEAR)


def normalised(picture: Image.Image, config: DataConfig) -> np.ndarray:
    """Scale the values of an RGB picture to [0, 1], and normalise them by `config.mean` and `config.std`.

    The result is (3, H, W) float32; the picture is not changed.
    """
    bytes_per_channel = np.asarray(picture).transpose(2, 0, 1)
    pixels = np.empty(bytes_per_channel.shape, np.float32)
    scale = np.arange(256, dtype=np.float32) / np.float32(255)
    for channel, mean, std, output in zip(bytes_per_channel, config.mean, config.std, pixels, strict=True):
        table = (scale - np.float32(mean)) / np.float32(std)  # a look-up is faster than three passes
        np.take(table, channel, out=output, mode="clip")
    return pixels


def model_input(picture: Image.Image, config: DataConfig) -> np.ndarray:
    """Return an RGB picture as the model's input, resized to (h, w) and normalised: (3, h, w) float32.

    `input_size` determines h and w.
    """
    size = input_size((picture.height, picture.width), config)
    return normalised(resized(picture, size), config)

"""The types of pictures that a detector accepts, and their conversion to PIL RGB.

PyTorch is imported only for tensors, so that exported files can be used without it.

Letters: H, W height and width of a picture.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image

from ..checkpoint.names import DEMO, demo_pictures
from ..data.images import open_image
from ..errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

Picture: TypeAlias = "str | Path | Image.Image | np.ndarray | Tensor"


def read_picture(image: Picture, max_pixels: int) -> Image.Image:
    """Return a picture as PIL RGB, turned upright according to its EXIF orientation.

    Args:
        image: a path, a PIL image, an (H, W, 3) uint8 RGB array, or a tensor (3, H, W), uint8 or float in
            [0, 1], in RGB order. The string `demo` means the first picture that comes with the bundled model,
            unless there is a file or folder with this name.
        max_pixels: the maximum H·W.

    Raises:
        UserError: if `image` has another type, shape or range, cannot be read, or is too large.
    """
    if isinstance(image, str) and image == DEMO and not Path(DEMO).exists():
        image = demo_pictures()[0]
    elif not isinstance(image, str | Path | Image.Image | np.ndarray):
        image = _array_of_tensor(image)
    return open_image(image, max_pixels=max_pixels).picture


def _array_of_tensor(image: Any) -> np.ndarray:
    """Convert a tensor (3, H, W) to an array (H, W, 3).

    Floats in [0, 1] are converted to uint8. Integers keep their type, which `open_image` checks.

    Raises:
        UserError: if `image` is not a tensor, has another shape, or contains floats outside [0, 1].
    """
    import torch

    if not isinstance(image, torch.Tensor):
        raise UserError(
            "a picture must be a path, a PIL image, an array or a tensor, "
            f"not {type(image).__name__}: convert it first."
        )
    if image.ndim != 3 or image.shape[0] != 3:
        raise UserError(f"a picture as a tensor must have shape (3, H, W), not {tuple(image.shape)}.")
    if image.is_floating_point():
        if image.numel() and not (float(image.min()) >= 0 and float(image.max()) <= 1):
            raise UserError(
                "a picture as a float tensor must hold values in [0, 1]: pass it before normalisation."
            )
        image = (image * 255).round().to(torch.uint8)
    array: np.ndarray = image.permute(1, 2, 0).cpu().numpy()
    return array

"""Pictures that are embedded in a page."""

from __future__ import annotations

import base64

from PIL import Image

from ..drawing import encoded


def data_url(picture: Image.Image, max_side: int | None = None, quality: int = 82) -> str:
    """Return the picture as a JPEG in a data URL.

    Args:
        picture: the picture, of a mode that JPEG can store, such as RGB.
        max_side: the maximum length of a side in pixels; larger pictures are shrunk. None means no limit.
        quality: the quality of the JPEG, from 0 to 95.
    """
    if max_side is not None and max(picture.size) > max_side:
        picture = picture.copy()
        picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    jpeg = encoded(picture, "JPEG", quality=quality, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode('ascii')}"

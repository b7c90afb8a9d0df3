"""Pictures inside a page."""

from __future__ import annotations

import base64
from io import BytesIO

from PIL import Image


def data_url(picture: Image.Image, most_side: int | None = None, quality: int = 82) -> str:
    """The picture as a JPEG in a data URL, made smaller if a side is longer than `most_side` pixels."""
    if most_side is not None and max(picture.size) > most_side:
        picture = picture.copy()
        picture.thumbnail((most_side, most_side), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    picture.save(buffer, "JPEG", quality=quality, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"

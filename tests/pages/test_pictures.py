"""Pictures as data URLs."""

from __future__ import annotations

import base64
from io import BytesIO

import pytest
from PIL import Image

from deformable_detr.pages import data_url


@pytest.mark.parametrize(("most", "size"), [(None, (200, 100)), (300, (200, 100)), (50, (50, 25))])
def test_a_picture_is_a_small_jpeg(most: int | None, size: tuple[int, int]) -> None:
    picture = Image.new("RGB", (200, 100), (250, 0, 0))
    kind, content = data_url(picture, most).split(",")
    assert kind == "data:image/jpeg;base64"
    opened = Image.open(BytesIO(base64.b64decode(content)))
    assert (opened.format, opened.size, picture.size) == ("JPEG", size, (200, 100))
    assert opened.getpixel((1, 1))[0] > 240

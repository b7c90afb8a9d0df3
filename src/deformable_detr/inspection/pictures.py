"""The image files of a split, looked at one by one: do they open, to the last byte, and are they what the
annotation says? The fingerprints for duplicates.py come from the same pass."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from rich.console import Console

from ..data.images import read_header, read_thumbnail, should_rotate
from ..data.records import ImageRecord, Problem
from ..errors import UserError
from ..progress import track
from .duplicates import THUMBNAIL, Fingerprint

Images = Literal["decode", "headers", "no"]


@dataclass(frozen=True)
class PictureCheck:
    rotated: int = 0
    not_rotated: int = 0
    problems: tuple[Problem, ...] = ()
    fingerprints: tuple[Fingerprint, ...] = ()


@dataclass(frozen=True)
class _Seen:
    """What one file gave. `turned`: by EXIF; `lying`: left as it is stored against its EXIF data."""

    problem: Problem | None = None
    turned: bool = False
    lying: bool = False
    fingerprint: Fingerprint | None = None


def check_pictures(
    split: str, images: Sequence[ImageRecord], how: Images, max_pixels: int, console: Console | None
) -> PictureCheck:
    """decode: every byte of every file (JPEG at an eighth of its sides); headers: the first bytes; no: none.

    console: where to show how far it is, if it is a terminal.
    """
    if how == "no":
        return PictureCheck()
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # Pillow decodes without Python's lock
        seen: Iterable[_Seen] = threads.map(lambda image: _look(split, image, how, max_pixels), images)
        if console is not None:
            seen = track(seen, len(images), f"{split}: opening images", console)
        found = list(seen)
    return PictureCheck(
        rotated=sum(each.turned for each in found),
        not_rotated=sum(each.lying for each in found),
        problems=tuple(each.problem for each in found if each.problem is not None),
        fingerprints=tuple(each.fingerprint for each in found if each.fingerprint is not None),
    )


def _look(split: str, image: ImageRecord, how: Images, max_pixels: int) -> _Seen:
    def problem(kind: str, message: str) -> Problem:
        return Problem(kind, image.file_name, f"{message} Training stops at it.")

    try:
        header = read_header(image.path)
    except UserError as error:
        return _Seen(problem("unreadable-image", str(error)))
    turned = should_rotate(header, image.size)
    lying = header.orientation != 1 and not turned
    height, width = header.upright_size if turned else header.stored_size
    if (height, width) != image.size:
        message = (
            f"the file has {width} x {height} pixels, the annotation says "
            f"{image.size[1]} x {image.size[0]}: its boxes belong to another picture."
        )
        return _Seen(problem("image-size-differs", message), turned, lying)
    if height * width > max_pixels:
        message = (
            f"the file has {width} x {height} pixels, more than data.max_pixels ({max_pixels:,}): raise it, "
            "or make the picture smaller."
        )
        return _Seen(problem("image-too-large", message), turned, lying)
    if how == "headers":
        return _Seen(None, turned, lying)
    try:
        thumbnail = read_thumbnail(image.path, THUMBNAIL, annotated_size=image.size, max_pixels=max_pixels)
    except UserError as error:
        return _Seen(problem("broken-image", str(error)), turned, lying)
    return _Seen(None, turned, lying, Fingerprint(split, image.file_name, thumbnail, width / height))

"""Check that a split's image files can be read to the last byte and have their annotated sizes.

The same pass over the files computes the fingerprints by which duplicates.py finds duplicate pictures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from rich.console import Console

from ..data.images import read_header, read_thumbnail, should_rotate
from ..data.records import ImageRecord, Problem
from ..errors import UserError
from ..progress import track
from ..system.machine import num_cores
from .duplicates import THUMBNAIL, Fingerprint

Images = Literal["decode", "headers", "no"]


@dataclass(frozen=True)
class PictureCheck:
    """The results of checking the image files of a split.

    Attributes:
        rotated: the number of images that are turned according to EXIF when they are opened.
        not_rotated: the number of images whose EXIF orientation is ignored, because turning them would not
            lead to their annotated size.
        problems: a problem for each image that is unusable or suspect, in the order of the images.
        fingerprints: those of the images without a problem, in the order of the images; empty unless the
            images were decoded.
    """

    rotated: int = 0
    not_rotated: int = 0
    problems: tuple[Problem, ...] = ()
    fingerprints: tuple[Fingerprint, ...] = ()


@dataclass(frozen=True)
class _Seen:
    """The result of checking one image file.

    Attributes:
        problem: the reason why the image is unusable or suspect; None if there is none.
        rotated: True if the image is turned according to its EXIF data.
        not_rotated: True if the EXIF orientation is ignored, because turning the image would not lead to its
            annotated size.
        fingerprint: the fingerprint of the image; None if there is a problem or the image was not decoded.
    """

    problem: Problem | None = None
    rotated: bool = False
    not_rotated: bool = False
    fingerprint: Fingerprint | None = None


def check_pictures(
    split: str, images: Sequence[ImageRecord], how: Images, max_pixels: int, console: Console | None
) -> PictureCheck:
    """Check the image files of a split.

    Args:
        split: the name of the split, for messages.
        images: the images of the split.
        how: `decode` decodes every file, JPEG at a reduced scale, which also reads it to its last byte;
            `headers` reads only the first bytes; `no` reads nothing, so that the result is empty.
        max_pixels: the maximum number of pixels (width times height) of a picture; larger ones are reported
            as a problem and not decoded.
        console: the console on which to show the progress if it is a terminal; None shows nothing.
    """
    if how == "no":
        return PictureCheck()
    with ThreadPoolExecutor(num_cores()) as threads:  # Pillow releases Python's lock to decode
        seen: Iterable[_Seen] = threads.map(lambda image: _look(split, image, how, max_pixels), images)
        if console is not None:
            seen = track(seen, len(images), f"{split}: opening images", console)
        results = list(seen)
    return PictureCheck(
        rotated=sum(result.rotated for result in results),
        not_rotated=sum(result.not_rotated for result in results),
        problems=tuple(result.problem for result in results if result.problem is not None),
        fingerprints=tuple(result.fingerprint for result in results if result.fingerprint is not None),
    )


def _look(split: str, image: ImageRecord, how: Images, max_pixels: int) -> _Seen:
    def problem(kind: str, message: str) -> Problem:
        return Problem(kind, image.file_name, f"{message} Training will stop at this image.")

    try:
        header = read_header(image.path)
    except UserError as error:
        return _Seen(problem("unreadable-image", str(error)))
    rotated = should_rotate(header, image.size)
    not_rotated = header.orientation != 1 and not rotated
    height, width = header.upright_size if rotated else header.stored_size
    if (height, width) != image.size:
        message = (
            f"the file has {width} x {height} pixels, the annotation says "
            f"{image.size[1]} x {image.size[0]}: its boxes belong to another picture."
        )
        return _Seen(problem("image-size-differs", message), rotated, not_rotated)
    if height * width > max_pixels:
        message = (
            f"the file has {width} x {height} pixels, more than data.max_pixels ({max_pixels:,}): raise it, "
            "or make the picture smaller."
        )
        return _Seen(problem("image-too-large", message), rotated, not_rotated)
    if how == "headers":
        return _Seen(None, rotated, not_rotated)
    try:
        thumbnail = read_thumbnail(image.path, THUMBNAIL, annotated_size=image.size, max_pixels=max_pixels)
    except UserError as error:
        return _Seen(problem("broken-image", str(error)), rotated, not_rotated)
    fingerprint = Fingerprint(split, image.file_name, thumbnail, width / height)
    return _Seen(None, rotated, not_rotated, fingerprint)

"""Conversion of an annotation's raw columns to `ImageRecord`s, which is the same for all layouts.

A reader (coco, voc, yolo) turns its files into two things: a list of `RawImage` and the columns of
`RawObjects`, as the files state them. Here the boxes are checked, dropped or clipped, in one pass of NumPy
over the whole split, and assigned to their images. So the three layouts treat broken boxes alike.

This module also assigns image ids if a layout has none.

N is the number of objects of the split.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from ...errors import UserError
from ..images import read_header
from ..records import ImageRecord, Problem
from ..remote_folder import RemoteFile
from .lookup import Files

# Pixels by which a box may extend beyond the image without a report, since rounding to a few decimals can
# cause that (COCO writes two; YOLO's usual six are 0.01 pixels in a picture of 10000). The box is clipped.
ROUNDING = 0.1

# Nobody annotates so many objects in one picture, and processing them would take minutes and gigabytes.
MOST_OBJECTS = 100_000
_TOO_MANY = f"{{:,}} objects in one picture, more than {MOST_OBJECTS:,}: it is left out with all of them"

# In pictures whose sides are all longer than this, boxes within the first pixel may be fractions.
_LARGER_THAN_FRACTIONS = 4

# The annotation of one image has a few kilobytes. A larger file than this is something else and not parsed.
MAX_ANNOTATION_BYTES = 16 * 2**20
MAX_LIST_BYTES = 256 * 2**20  # names of some millions of images


class RawImage(NamedTuple):
    """An image whose file exists, or which is behind a URL.

    Attributes:
        path: the path of the file, or the `file_name` of an image behind a URL.
        file_name: the name by which results and messages call the image.
        size: (H, W) in pixels.
        remote: the file behind a URL; None if the file is on the disk.
    """

    path: str
    file_name: str
    image_id: int
    size: tuple[int, int]
    remote: RemoteFile | None = None


def size_of(
    stated: tuple[int | None, int | None],
    file: str | RemoteFile,
    where: Callable[[], str],
    problems: list[Problem],
) -> tuple[int, int] | None:
    """Return the (H, W) of an image as its annotation states it or, if a side is missing, as the file does.

    Reading the file is noted in `problems`, with the place that `where` returns. If the file cannot be read,
    the result is None.
    """
    height, width = stated
    if height is not None and width is not None:
        return height, width
    try:
        size = read_header(file).upright_size
    except UserError as error:
        problems.append(Problem("unreadable-image", where(), f"no size is stated, and {error} Left out"))
        return None
    message = f"no usable width and height: {size[1]} x {size[0]} read from the file"
    problems.append(Problem("missing-size", where(), message))
    return size


@dataclass(frozen=True)
class RawObjects:
    """The N objects of a split, as the files state them.

    `image_index`: (N,) int64, position in the list of images. `labels`: (N,) int64 class indices.
    `boxes_xyxy`: (N, 4) float64 pixels, unchecked. `crowd`, `difficult`: (N,) bool, as in `ImageRecord`.
    `area`: (N,) float64 in pixels, NaN if the files state none. `annotation_ids`: (N,) int64.
    """

    image_index: np.ndarray
    labels: np.ndarray
    boxes_xyxy: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray
    area: np.ndarray
    annotation_ids: np.ndarray

    def take(self, rows: np.ndarray, position: np.ndarray) -> RawObjects:
        """Return the objects at the indices `rows`.

        `position` (number of images,) is the new position of each image, by its old one.
        """
        return RawObjects(
            image_index=position[self.image_index[rows]],
            labels=self.labels[rows],
            boxes_xyxy=self.boxes_xyxy[rows],
            crowd=self.crowd[rows],
            difficult=self.difficult[rows],
            area=self.area[rows],
            annotation_ids=self.annotation_ids[rows],
        )


def assemble(
    images: Sequence[RawImage], objects: RawObjects, where: Callable[[int], str]
) -> tuple[tuple[ImageRecord, ...], list[Problem]]:
    """Return records sorted by image id, and the problems with boxes or with the number of objects.

    Images with more than `MOST_OBJECTS` objects are left out. `where` returns the location (file and line, or
    annotation id) of the object in a row of `objects`.
    """
    counts = np.bincount(objects.image_index, minlength=len(images))
    if (counts > MOST_OBJECTS).any():
        return _without_crowded(images, objects, where, counts)

    sizes = np.array([image.size for image in images], dtype=np.float64).reshape(-1, 2)
    boxes, keep, findings = check_boxes(objects.boxes_xyxy, sizes[objects.image_index])
    fractions = _fractions(objects.boxes_xyxy, sizes[objects.image_index]) & keep
    if fractions.any():
        keep &= ~fractions
        message = (
            "the box is within the first pixel, as most boxes of this split are: they look like fractions of "
            "the picture's width and height instead of pixels, so it is dropped"
        )
        findings += [(int(row), "box-in-fractions", message) for row in np.flatnonzero(fractions)]
        findings.sort(key=lambda finding: finding[0])
    problems = [
        Problem(
            kind,
            where(row),
            message,
            image=Path(images[objects.image_index[row]].path),
            box_xyxy=tuple(objects.boxes_xyxy[row].tolist()),
        )
        for row, kind, message in findings
    ]

    return _records(images, objects, boxes, keep), problems


def _without_crowded(
    images: Sequence[RawImage], objects: RawObjects, where: Callable[[int], str], counts: np.ndarray
) -> tuple[tuple[ImageRecord, ...], list[Problem]]:
    """Assemble the images with at most MOST_OBJECTS objects, and report each of the others as a problem."""
    few = counts <= MOST_OBJECTS
    crowded = [
        Problem("too-many-objects", images[index].file_name, _TOO_MANY.format(counts[index]))
        for index in np.flatnonzero(~few).tolist()
    ]
    rows = np.flatnonzero(few[objects.image_index])
    records, problems = assemble(
        [images[index] for index in np.flatnonzero(few).tolist()],
        objects.take(rows, position=np.cumsum(few) - 1),
        lambda row: where(int(rows[row])),
    )
    return records, [*crowded, *problems]


def _records(
    images: Sequence[RawImage], objects: RawObjects, boxes_xyxy: np.ndarray, keep: np.ndarray
) -> tuple[ImageRecord, ...]:
    """Return records sorted by image id, with the objects for which `keep` (N,) is True.

    `boxes_xyxy`: (N, 4), checked and clipped. The area of a box replaces a missing area.
    """
    by_id = sorted(range(len(images)), key=lambda index: images[index].image_id)
    rank = np.empty(len(images), dtype=np.int64)
    rank[by_id] = np.arange(len(images))
    rows = np.flatnonzero(keep)
    rows = rows[np.argsort(rank[objects.image_index[rows]], kind="stable")]
    ends = np.cumsum(np.bincount(rank[objects.image_index[rows]], minlength=len(images)))

    boxes = boxes_xyxy[rows]
    own_area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    area = np.where(np.isnan(objects.area[rows]), own_area, objects.area[rows])
    labels, annotation_ids = objects.labels[rows], objects.annotation_ids[rows]
    crowd, difficult = objects.crowd[rows], objects.difficult[rows]

    records = []
    start = 0
    for index, end in zip(by_id, ends.tolist(), strict=True):
        image = images[index]
        part = slice(start, end)
        records.append(
            ImageRecord(
                path=Path(image.path),
                file_name=image.file_name,
                image_id=image.image_id,
                size=image.size,
                boxes_xyxy=boxes[part],
                labels=labels[part],
                crowd=crowd[part],
                difficult=difficult[part],
                area=area[part],
                annotation_ids=annotation_ids[part],
                remote=image.remote,
            )
        )
        start = end
    return tuple(records)


def _fractions(boxes_xyxy: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return (N,) bool, True for boxes that look like fractions of their pictures' sides instead of pixels.

    These are the boxes within the first pixel of a picture whose sides are longer than 4 pixels. If there are
    fewer than two of these boxes, or they are at most half of all boxes, the result is False for all. `sizes`
    (N, 2) are the (H, W) of the pictures.
    """
    within = (boxes_xyxy >= 0).all(axis=1) & (boxes_xyxy <= 1 + 1e-3).all(axis=1)
    within &= sizes.min(axis=1, initial=np.inf) > _LARGER_THAN_FRACTIONS
    number = np.count_nonzero(within)
    return within if number > 1 and 2 * number > len(within) else np.zeros_like(within)


def check_boxes(
    boxes_xyxy: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, str, str]]]:
    """Check N boxes, and clip them to their images.

    Args:
        boxes_xyxy: (N, 4) in pixels.
        sizes: (N, 2), the (H, W) of each box's image in pixels.

    Returns:
        All boxes, clipped to their images; a mask (N,) bool, False for boxes to drop; and the findings as
        (row, kind, message) in the order of the rows, for boxes to drop and for boxes that extend more than
        `ROUNDING` pixels beyond their image.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        finite = np.isfinite(boxes_xyxy).all(axis=1)
        sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
        limits = np.tile(sizes[:, ::-1], 2)
        clipped = np.clip(boxes_xyxy, 0.0, limits)
        inner_sides = clipped[:, 2:] - clipped[:, :2]
        overshoot = np.abs(clipped - boxes_xyxy).max(axis=1, initial=0.0)

        negative = finite & (sides < 0).any(axis=1)
        empty = finite & ~negative & (sides == 0).any(axis=1)
        outside = finite & ~negative & ~empty & (inner_sides <= 0).any(axis=1)
        keep = finite & ~negative & ~empty & ~outside
        over = keep & (overshoot > ROUNDING)

    findings = []
    for row in np.flatnonzero(~keep | over):
        x0, y0, x1, y1 = boxes_xyxy[row].tolist()
        height, width = sizes[row].tolist()
        box = f"box from ({x0:g}, {y0:g}) to ({x1:g}, {y1:g})"
        image = f"image of {width:g} x {height:g}"
        if not finite[row]:
            finding = ("box-not-finite", f"{box} is not made of finite numbers: dropped")
        elif negative[row]:
            finding = ("negative-box", f"{box} has a negative side: dropped")
        elif empty[row]:
            finding = ("zero-size-box", f"{box} has no area: dropped")
        elif outside[row]:
            finding = ("box-outside-image", f"{box} is outside the {image}: dropped")
        else:
            finding = (
                "box-over-border",
                f"{box} reaches {overshoot[row]:.2g} pixels over the border of the {image}: clipped",
            )
        findings.append((int(row), *finding))
    return clipped, keep, findings


def image_ids(names: Iterable[str]) -> dict[str, int]:
    """Return an id for each file name, for a layout that states none. The order of `names` does not matter.

    If every file name without its folder and suffix is a whole number of at most 18 digits, and no two
    numbers are equal (`000012.jpg`, `7.jpg`), the ids are these numbers, as in Pascal VOC 2007 and COCO.
    Otherwise, the ids are 1, 2, 3, … in the order of the sorted names; adding images can then change the ids
    of existing ones.
    """
    unique = sorted(set(names))
    stems = [PurePosixPath(name).stem for name in unique]
    if all(stem.isascii() and stem.isdecimal() and len(stem) <= 18 for stem in stems):
        numbers = [int(stem) for stem in stems]
        if len(set(numbers)) == len(numbers):
            return dict(zip(unique, numbers, strict=True))
    return {name: position for position, name in enumerate(unique, start=1)}


def respelt_names(files: Files, where: str) -> list[Problem]:
    """Return one note if any files were found under another spelling on the disk, otherwise an empty list.

    `where` is the location that the note states.
    """
    if not files.respelt:
        return []
    asked, found = files.respelt[0]
    message = (
        f"{len(files.respelt)} names are written otherwise on the disk (backslashes, case, or how accents "
        f"are composed), for example {asked!r} for {found!r}: found all the same"
    )
    return [Problem("respelt-name", where, message)]


def read_annotation(
    path: str, most_bytes: int = MAX_ANNOTATION_BYTES, what: str = "the annotation of one image"
) -> bytes:
    """Return the bytes of an annotation file. In messages, `what` states what such a file contains.

    Raises:
        UserError: if the file cannot be read, or has more than `most_bytes` bytes. Its size is checked before
            it is read.
    """
    try:
        size = os.path.getsize(path)
        if size > most_bytes:
            raise UserError(
                f"{path} has {size:,} bytes, too many for {what} (at most {most_bytes:,}): replace the file."
            )
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error


def read_lines(file: Path) -> list[str]:
    """Return the lines of a list of names, including blank ones.

    The list is UTF-8, or UTF-16 with a byte order mark. Like file names, it may contain bytes that are not
    valid UTF-8, which become surrogate escapes.

    Raises:
        UserError: if the file cannot be read or is larger than `MAX_LIST_BYTES`, or its UTF-16 is invalid.
    """
    data = read_annotation(str(file), MAX_LIST_BYTES, "a list")
    try:
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            return data.decode("utf-16").splitlines()
        return data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not text in UTF-8 ({error}): save it as such.") from error


def relative(path: str, root: str) -> str:
    """Return a file's name for messages: its path below `root`, with slashes."""
    return Path(os.path.relpath(path, root)).as_posix()

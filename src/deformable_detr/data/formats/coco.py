"""COCO layout: one JSON file per split with `images`, `annotations` and `categories`.

Locations of the files (S is the split; see coco_files.py):

    annotations/instances_S.json   images in S/, images/S/, S/images/, images/ or the root; for train2017 also
                                   in train/ and so on. Without any instances_*.json: annotations/S.json,
                                   S_annotations.json or person_keypoints_S.json
    S/_annotations.coco.json       images in the same folder (Roboflow)
    S/labels.json                  images in S/data/ (FiftyOne)
    result.json, labels.json, …    in the root, images in images/, data/ or the root (Label Studio, VIA,
                                   makesense, labelme's script, FiftyOne)

The class index is the position among the categories sorted by id, whatever the ids are (COCO's 1..90 with
gaps, 0-based, …). Boxes are [x, y, width, height] in pixels, with x and y measured from the corner of the
first pixel, so no offset is added. Crowd regions are kept and marked. All segmentations are ignored.

An image is opened only if the file states no usable size for it. N is the number of objects of the split.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...detections import ClassTable
from ...errors import UserError
from ..records import Problem, Split
from ..remote_folder import RemoteFolder
from . import values
from .assembly import RawImage, RawObjects, assemble, respelt_names, size_of
from .coco_files import LOOKED_FOR, Source, find_sources, hint
from .coco_json import Places, load
from .lookup import Files, NamedFiles

__all__ = ["LOOKED_FOR", "hint", "present", "read", "splits"]

_LARGEST_AREA = 1e18
_Stated = dict[int, tuple[int, dict[str, Any]]]  # by image id: (position in the list, entry)


def present(root: Path) -> bool:
    return bool(find_sources(root))


def splits(root: Path) -> tuple[str, ...]:
    return tuple(find_sources(root))


def read(root: Path, split: str, folder: RemoteFolder | None = None) -> Split:
    """Read one split, whose name is one of `splits`.

    `folder` is the folder behind a URL that holds the pictures, or None if they are in the data set.

    Raises:
        UserError: if the annotation file as a whole, or every category in it, is unusable.
    """
    source = find_sources(root)[split]
    content = load(source.file)
    places = Places(source.file, Path(source.file).relative_to(source.root).as_posix())
    problems: list[Problem] = []

    classes = _classes(content["categories"], places, problems)
    stated = _stated(content["images"], places, problems)
    if folder is None:
        images = _images(stated, source, places, problems)
    else:
        images = _remote_images(stated, folder, split, places, problems)
    known_ids = np.array(sorted(stated), dtype=np.int64)
    objects, rows, more = _objects(content["annotations"], classes, images, known_ids, places)
    problems += more

    def where(row: int) -> str:
        return places.annotation(content["annotations"][rows[row]], int(rows[row]))

    records, box_problems = assemble(images, objects, where)
    return Split(
        split,
        "coco",
        Path(source.file),
        classes,
        records,
        problems=tuple(problems) + tuple(box_problems),
        num_listed_images=len(content["images"]),
        num_listed_objects=len(content["annotations"]),
    )


# --- categories -------------------------------------------------------------------------------------------


def _classes(rows: list[Any], places: Places, problems: list[Problem]) -> ClassTable:
    names: dict[int, str] = {}
    for position, row in enumerate(rows):
        category_id = values.whole_number(row.get("id")) if isinstance(row, dict) else None
        name = row.get("name") if isinstance(row, dict) else None
        if type(name) is int:  # a class named 7
            name = str(name)
        if category_id is None or not isinstance(name, str):
            message = "not an object with an integer id and a name: dropped"
            problems.append(Problem("malformed-category", places.of("categories", position), message))
        elif category_id in names:
            message = f"id {category_id} is taken: only the first one counts"
            problems.append(Problem("duplicate-category-id", places.of("categories", position), message))
        else:
            names[category_id] = name
    if not names:
        raise UserError(f"{places.called} has no usable category: give its list of categories ids and names.")
    ids = sorted(names)
    return ClassTable(tuple(names[category_id] for category_id in ids), tuple(ids))


# --- images -----------------------------------------------------------------------------------------------


def _stated(rows: list[Any], places: Places, problems: list[Problem]) -> _Stated:
    """Return the usable entries of the list of images by image id; add the others to `problems`."""
    stated: _Stated = {}
    for position, row in enumerate(rows):
        image_id = values.whole_number(row.get("id")) if isinstance(row, dict) else None
        if image_id is None or not isinstance(row.get("file_name"), str):
            message = "not an object with an integer id and a file_name: dropped"
            problems.append(Problem("malformed-image", places.of("images", position), message))
        elif image_id in stated:
            message = f"{row['file_name']!r} has the id of {stated[image_id][1]['file_name']!r}: dropped"
            problems.append(Problem("duplicate-image-id", places.image(row, position), message))
        else:
            stated[image_id] = position, row
    return stated


def _images(stated: _Stated, source: Source, places: Places, problems: list[Problem]) -> list[RawImage]:
    """Return the images whose file exists and whose size is known; add the others to `problems`."""
    files = Files(source.root)
    found = NamedFiles(files, source.folders, [row["file_name"] for _, row in stated.values()])
    images = []
    for image_id, (position, row) in stated.items():
        name = row["file_name"]
        path = found.paths.get(name)
        if path is not None:
            size = size_of(_stated_size(row), path, partial(places.image, row, position), problems)
            if size is not None:
                images.append(RawImage(path, name, image_id, size))
        elif expected := found.missing(name):
            message = f"there is no file {expected!r}: left out"
            problems.append(Problem("missing-image", places.image(row, position), message))
        else:
            message = f"{name!r} leads out of the data set: left out"
            problems.append(Problem("outside-root", places.image(row, position), message))
    problems += respelt_names(files, places.called)
    return images


def _remote_images(
    stated: _Stated, folder: RemoteFolder, split: str, places: Places, problems: list[Problem]
) -> list[RawImage]:
    """Return the images behind a URL whose size is known; add the others to `problems`.

    An image for which the file states a size is not read, so it is not noticed here if it does not exist.
    """
    images = []
    for image_id, (position, row) in stated.items():
        name = row["file_name"]
        remote = folder.file(name, split)
        if remote is None:
            message = f"{name!r} leads out of {folder.url}: left out"
            problems.append(Problem("outside-root", places.image(row, position), message))
            continue
        size = size_of(_stated_size(row), remote, partial(places.image, row, position), problems)
        if size is not None:
            images.append(RawImage(name, name, image_id, size, remote))
    return images


def _stated_size(row: dict[str, Any]) -> tuple[int | None, int | None]:
    return values.length(row.get("height")), values.length(row.get("width"))


# --- annotations ------------------------------------------------------------------------------------------


class _Judged(NamedTuple):
    """The fields of an annotation that could be read; the image and the category need not exist.

    `position`: the index of the annotation in the file's list. `xywh`: the box [x, y, width, height] in
    pixels, unchecked.
    """

    position: int
    image_id: int
    category_id: int
    xywh: list[float]


class _UnusableError(Exception):
    """Raised with (kind, message) if an annotation cannot be used."""


def _objects(
    rows: list[Any], classes: ClassTable, images: list[RawImage], known_ids: np.ndarray, places: Places
) -> tuple[RawObjects, np.ndarray, list[Problem]]:
    """Return the objects with a usable image and category, their positions in `rows`, and the problems.

    `known_ids` are the ids of all images that the file lists, and `images` are the usable ones among them.
    """
    problems = []
    sound: list[_Judged] = []
    for position, row in enumerate(rows):
        try:
            sound.append(_judge(row, position))
        except _UnusableError as error:
            kind, message = error.args
            problems.append(Problem(kind, places.annotation(row, position), f"{message}: dropped"))
    image_id = np.fromiter((item.image_id for item in sound), np.int64, len(sound))
    category_id = np.fromiter((item.category_id for item in sound), np.int64, len(sound))

    image_known = np.isin(image_id, known_ids)
    category_known = np.isin(category_id, classes.category_ids)
    for index in np.flatnonzero(~(image_known & category_known)):
        if not image_known[index]:
            kind, what = "unknown-image", f"no image has the id {image_id[index]}"
        else:
            kind, what = "unknown-category", f"no category has the id {category_id[index]}"
        position = sound[index].position
        problems.append(Problem(kind, places.annotation(rows[position], position), f"{what}: dropped"))

    # Objects of an image that was left out are dropped without a report: the image itself is reported.
    image_index, image_usable = _positions(image_id, [image.image_id for image in images])
    labels, _ = _positions(category_id, classes.category_ids)
    keep = np.flatnonzero(category_known & image_usable)
    at = np.fromiter((sound[index].position for index in keep), np.int64, len(keep))
    kept = [rows[position] for position in at.tolist()]

    xywh = np.array([sound[index].xywh for index in keep], dtype=np.float64).reshape(-1, 4)
    with np.errstate(over="ignore", invalid="ignore"):  # checked in assembly.check_boxes
        boxes_xyxy = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    objects = RawObjects(
        image_index=image_index[keep],
        labels=labels[keep],
        boxes_xyxy=boxes_xyxy,
        crowd=_crowds(kept, at, places, problems),
        difficult=np.zeros(len(kept), dtype=bool),
        area=_areas(kept, at, places, problems),
        annotation_ids=_annotation_ids(kept, at, places, problems),
    )
    return objects, at, problems


def _judge(row: Any, position: int) -> _Judged:
    """Return the fields of one annotation; raise _UnusableError if one of them is unusable."""
    if not isinstance(row, dict):
        raise _UnusableError("malformed-annotation", "not an object")
    image_id = values.whole_number(row.get("image_id"))
    category_id = values.whole_number(row.get("category_id"))
    if image_id is None or category_id is None:
        field = "image_id" if image_id is None else "category_id"
        message = f"image_id and category_id must be integers, not {row.get(field)!r:.80}"
        raise _UnusableError("malformed-annotation", message)
    xywh = values.box_values(row.get("bbox"))
    if isinstance(xywh, str):
        kind = "not-a-number" if "made of numbers" in xywh else "malformed-annotation"
        raise _UnusableError(kind, xywh)
    return _Judged(position, image_id, category_id, xywh)


def _crowds(
    rows: list[dict[str, Any]], at: np.ndarray, places: Places, problems: list[Problem]
) -> np.ndarray:
    """Return a mask of the crowds, (N,) bool. Unusable values of `iscrowd` count as 0 and are reported.

    `rows` are the N annotations, and `at` (N,) their positions in the file's list. All NaN values
    together are reported as one problem.
    """
    crowds = np.zeros(len(rows), dtype=bool)
    missing: list[int] = []
    for index, row in enumerate(rows):
        value = row.get("iscrowd")
        crowd = values.flag(value)
        if crowd is None:
            where = places.annotation(row, int(at[index]))
            problems.append(Problem("bad-iscrowd", where, f"iscrowd {value!r:.80} is not 0 or 1: taken as 0"))
        elif value is not None and values.is_missing(value):
            missing.append(index)
        crowds[index] = bool(crowd)
    if missing:
        where = places.annotation(rows[missing[0]], int(at[missing[0]]))
        message = f"iscrowd is NaN in {len(missing)} annotations, the first one here: taken as 0"
        problems.append(Problem("bad-iscrowd", where, message))
    return crowds


def _annotation_ids(
    rows: list[dict[str, Any]], at: np.ndarray, places: Places, problems: list[Problem]
) -> np.ndarray:
    """Return the annotations' ids, (N,) int64. Missing or repeated ids become free ones and are reported.

    `rows` are the N annotations, and `at` (N,) their positions in the file's list. The free ids are the
    smallest positive numbers that no annotation has.
    """
    ids: list[int | None] = []
    taken: set[int] = set()
    for row, position in zip(rows, at.tolist(), strict=True):
        own = values.whole_number(row.get("id"))
        if own is not None and own not in taken:
            taken.add(own)
            ids.append(own)
            continue
        ids.append(None)
        where = places.of("annotations", position)
        if own is not None:
            message = f"the id {own} is taken: kept under a free one"
            problems.append(Problem("duplicate-annotation-id", where, message))
        else:
            problems.append(Problem("missing-annotation-id", where, "no integer id: kept under a free one"))
    free = (number for number in itertools.count(1) if number not in taken)
    return np.array([next(free) if own is None else own for own in ids], dtype=np.int64)


def _areas(rows: list[dict[str, Any]], at: np.ndarray, places: Places, problems: list[Problem]) -> np.ndarray:
    """Return the areas, (N,) float64 in pixels, with NaN for areas that are not stated or are invalid.

    `rows` are the N annotations, and `at` (N,) their positions in the file's list. Invalid areas are also
    reported.
    """
    areas = np.full(len(rows), np.nan)
    for index, row in enumerate(rows):
        area = values.number(row.get("area"))
        if area is not None and 0 <= area <= _LARGEST_AREA:
            areas[index] = area
        elif not values.is_missing(row.get("area")):
            where = places.annotation(row, int(at[index]))
            problems.append(
                Problem("bad-area", where, f"{row['area']!r:.80} is not an area: width x height instead")
            )
    return areas


def _positions(values: np.ndarray, among: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the position of each value in `among`, and a mask that is True for the values in it.

    `among` may have any order, but no repeats. The position of a value that is not in it has no meaning.
    """
    table = np.array(list(among), dtype=np.int64)
    if len(table) == 0:
        return np.zeros(len(values), dtype=np.int64), np.zeros(len(values), dtype=bool)
    order = np.argsort(table)
    found = np.minimum(np.searchsorted(table[order], values), len(table) - 1)
    return order[found], table[order[found]] == values

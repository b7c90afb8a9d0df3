"""COCO layout: one JSON file per split with `images`, `annotations` and `categories`.

Where the files lie (S is the split):

    annotations/instances_S.json   images in S/, images/S/, S/images/, images/ or the root; for train2017 also
                                   in train/ and so on. Without any instances_*.json: annotations/S.json
    S/_annotations.coco.json       images beside it (Roboflow's export)

Class index = position among the categories sorted by id, whatever the ids are (COCO's 1..90 with gaps,
0-based, …). Boxes are [x, y, width, height] in pixels, x and y from the corner of the first pixel: taken as
they are. Crowd regions are kept and marked. Segmentations of any kind are not looked at.

No image is opened. N: objects of the split.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from ...errors import UserError
from ...structures import ClassTable
from ..images import read_header
from ..records import Problem, Split
from .assembly import RawImage, RawObjects, assemble, path_inside, relative

LOOKED_FOR = "annotations/*.json or */_annotations.coco.json (COCO)"

_ROBOFLOW = "_annotations.coco.json"
# COCO's other files that share the folder and hold no boxes to learn from.
_OTHER_TASKS = ("captions_", "person_keypoints_", "stuff_", "panoptic_", "image_info_")
_PROBED_NAMES = 20
_LARGEST_AREA = 1e18
_NUMBERS = frozenset((int, float))  # by type, because True is an int


@dataclass(frozen=True)
class _Source:
    """One annotation file. `root`: the data set's folder. `folders`: where its images may lie, best first."""

    root: str
    file: str
    folders: tuple[str, ...]


def present(root: Path) -> bool:
    return bool(_sources(root))


def splits(root: Path) -> tuple[str, ...]:
    return tuple(_sources(root))


def read(root: Path, split: str) -> Split:
    """Raises UserError where the file as a whole cannot be used, or none of its images can."""
    source = _sources(root)[split]
    content = _load(source.file)
    places = _Places(source.file, relative(source.file, source.root))
    problems: list[Problem] = []

    classes = _classes(content["categories"], places, problems)
    images, known_ids = _images(content["images"], source, places, problems)
    objects, rows, more = _objects(content["annotations"], classes, images, known_ids, places)
    problems += more

    def where(row: int) -> str:
        return places.annotation(content["annotations"][rows[row]], int(rows[row]))

    records, box_problems = assemble(images, objects, where)
    return Split(
        split, "coco", Path(source.file), classes, records, problems=tuple(problems) + tuple(box_problems)
    )


# --- files ------------------------------------------------------------------------------------------------


def _sources(root: Path) -> dict[str, _Source]:
    if root.is_file():
        return _source_of_file(root) if root.suffix == ".json" else {}
    roboflow = sorted(root.glob(f"*/{_ROBOFLOW}"))
    files = sorted((root / "annotations").glob("*.json"))
    instances = [file for file in files if file.stem.startswith("instances_")]
    sources = {}
    for file in instances:
        name = file.stem.removeprefix("instances_")
        sources[name] = _Source(str(root), str(file), _image_folders(root, name))
    if not instances:
        for file in files:
            folders = _image_folders(root, file.stem)
            # Any JSON can lie in a folder called annotations. A split has images.
            if not file.stem.startswith(_OTHER_TASKS) and any(map(os.path.isdir, folders[:-1])):
                sources[file.stem] = _Source(str(root), str(file), folders)
    for file in roboflow:
        sources.setdefault(file.parent.name, _Source(str(root), str(file), (str(file.parent),)))
    return sources


def _source_of_file(file: Path) -> dict[str, _Source]:
    """A data set named by one of its annotation files: that file is its only split."""
    if file.name == _ROBOFLOW:
        return {file.parent.name: _Source(str(file.parent.parent), str(file), (str(file.parent),))}
    root = file.parent.parent if file.parent.name == "annotations" else file.parent
    name = file.stem.removeprefix("instances_")
    return {name: _Source(str(root), str(file), _image_folders(root, name))}


def _image_folders(root: Path, split: str) -> tuple[str, ...]:
    names = dict.fromkeys((split, re.sub(r"[-_]?\d+$", "", split) or split))
    folders = [root / part for name in names for part in (name, f"images/{name}", f"{name}/images")]
    return tuple(str(folder) for folder in (*folders, root / "images", root))


def _load(file: str) -> dict[str, Any]:
    try:
        data = Path(file).read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}.") from error
    if not data.strip():
        raise UserError(f"{file} is empty: it should hold COCO's images, annotations and categories.")
    try:
        content = json.loads(data, object_hook=_without_segmentation)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not valid JSON ({error}): mend or export it again.") from error
    if isinstance(content, list) and content and isinstance(content[0], dict) and "score" in content[0]:
        raise UserError(
            f"{file} holds detections (results with scores), not annotations: name the file of the ground "
            "truth, with images, annotations and categories."
        )
    if not isinstance(content, dict):
        raise UserError(
            f"{file} is not a COCO data set: it holds a {type(content).__name__}, not an object with images, "
            "annotations and categories."
        )
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise UserError(f"{file} is not a COCO data set: it has no list named {key}.")
    return content


def _without_segmentation(entry: dict[str, Any]) -> dict[str, Any]:
    # Outlines are nine tenths of COCO's numbers. Let go while parsing, they never add up in memory.
    entry.pop("segmentation", None)
    return entry


class _Places:
    """What entries of the file are called in messages: file, line, and id or position.

    A line is given where the file is written over several; it is looked for when the first entry is to be
    named, since sound files need none.
    """

    def __init__(self, file: str, called: str) -> None:
        self.called = called
        self._file = file
        self._lines: dict[str, list[int]] | None = None

    def of(self, key: str, position: int, name: str | None = None) -> str:
        if self._lines is None:
            self._lines = _lines(_decoded(Path(self._file).read_bytes()))
        lines = self._lines.get(key, [])
        line = f":{lines[position]}" if position < len(lines) else ""
        return f"{self.called}{line}, {name or f'{key}[{position}]'}"

    def image(self, row: dict[str, Any], position: int) -> str:
        return self.of("images", position, f"image {row['id']}")

    def annotation(self, row: Any, position: int) -> str:
        own = row.get("id") if isinstance(row, dict) else None
        return self.of("annotations", position, f"annotation {own}" if _is_id(own) else None)


def _decoded(data: bytes) -> str:
    """As json.loads reads bytes: UTF-8, or UTF-16 and UTF-32, with or without a byte order mark."""
    return data.decode(json.detect_encoding(data), "surrogatepass")


def _lines(text: str) -> dict[str, list[int]]:
    """The lines on which the entries of the file's lists begin; nothing of files on a single line.

    text: valid JSON with an object at the top.
    """
    decoder = json.JSONDecoder(object_hook=_without_segmentation)
    lines: dict[str, list[int]] = {}
    if "\n" not in text.strip():
        return lines

    def after_blanks(at: int) -> int:
        while text[at] in " \t\r\n":
            at += 1
        return at

    at, counted, line = after_blanks(0) + 1, 0, 1
    while text[at := after_blanks(at)] != "}":
        key, at = decoder.raw_decode(text, at)
        at = after_blanks(after_blanks(at) + 1)  # the colon
        if text[at] == "[":
            starts = lines[key] = []
            at += 1
            while text[at := after_blanks(at)] != "]":
                line, counted = line + text.count("\n", counted, at), at
                starts.append(line)
                at = after_blanks(decoder.raw_decode(text, at)[1])
                at += text[at] == ","
            at += 1
        else:
            at = decoder.raw_decode(text, at)[1]
        at = after_blanks(at)
        at += text[at] == ","
    return lines


# --- categories -------------------------------------------------------------------------------------------


def _classes(rows: list[Any], places: _Places, problems: list[Problem]) -> ClassTable:
    names: dict[int, str] = {}
    for position, row in enumerate(rows):
        if not isinstance(row, dict) or not _is_id(row.get("id")) or not isinstance(row.get("name"), str):
            message = "not an object with an integer id and a name: dropped"
            problems.append(Problem("malformed-category", places.of("categories", position), message))
        elif row["id"] in names:
            message = f"id {row['id']} is taken: only the first one counts"
            problems.append(Problem("duplicate-category-id", places.of("categories", position), message))
        else:
            names[row["id"]] = row["name"]
    if not names:
        raise UserError(f"{places.called} has no usable category: give its list of categories ids and names.")
    ids = sorted(names)
    return ClassTable(tuple(names[category_id] for category_id in ids), tuple(ids))


# --- images -----------------------------------------------------------------------------------------------


def _images(
    rows: list[Any], source: _Source, places: _Places, problems: list[Problem]
) -> tuple[list[RawImage], np.ndarray]:
    """The images that are there, and the ids of all images that the file speaks of."""
    stated: dict[int, tuple[int, dict[str, Any]]] = {}
    for position, row in enumerate(rows):
        if (
            not isinstance(row, dict)
            or not _is_id(row.get("id"))
            or not isinstance(row.get("file_name"), str)
        ):
            message = "not an object with an integer id and a file_name: dropped"
            problems.append(Problem("malformed-image", places.of("images", position), message))
        elif row["id"] in stated:
            message = f"{row['file_name']!r} has the id of {stated[row['id']][1]['file_name']!r}: dropped"
            problems.append(Problem("duplicate-image-id", places.image(row, position), message))
        else:
            stated[row["id"]] = position, row

    files = _Files(source.root, _image_folder(source, [row["file_name"] for _, row in stated.values()]))
    images = []
    for image_id, (position, row) in stated.items():
        name = row["file_name"]
        path = files.path(name)
        if path is None:
            message = f"{name!r} leads out of the data set: left out"
            problems.append(Problem("outside-root", places.image(row, position), message))
        elif not files.has(path):
            message = f"there is no file {relative(path, source.root)!r}: left out"
            problems.append(Problem("missing-image", places.image(row, position), message))
        else:
            size = _size(row, path, partial(places.image, row, position), problems)
            if size is not None:
                images.append(RawImage(path, name, image_id, size))
    return images, np.array(sorted(stated), dtype=np.int64)


def _image_folder(source: _Source, names: list[str]) -> str:
    """The folder that holds most of the names, tried with some of them, spread over the list."""
    probed = names[:: max(1, len(names) // _PROBED_NAMES)]

    def hits(folder: str) -> int:
        paths = (path_inside(source.root, folder, name) for name in probed)
        return sum(path is not None and os.path.isfile(path) for path in paths)

    return max(source.folders, key=hits)  # the first of equals


class _Files:
    """The files below `base`. Each folder is judged and listed once: 118287 single questions to the file
    system take long, and on network disks very long."""

    def __init__(self, root: str, base: str) -> None:
        self._root = root
        self._base = base
        self._paths: dict[str, str | None] = {}
        self._listed: dict[str, set[str]] = {}

    def path(self, file_name: str) -> str | None:
        """Where the file would be; None outside the data set."""
        folder, name = os.path.split(file_name)
        if folder not in self._paths:
            self._paths[folder] = path_inside(self._root, self._base, folder)
        parent = self._paths[folder]
        return None if parent is None else os.path.join(parent, name)

    def has(self, path: str) -> bool:
        folder, name = os.path.split(path)
        if folder not in self._listed:
            self._listed[folder] = _list_files(folder)
        # Asked again where the listing says no: file systems that ignore case find more than was listed.
        return name in self._listed[folder] or os.path.isfile(path)


def _list_files(folder: str) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except (OSError, ValueError):  # no such folder; a name that the file system cannot spell
        return set()


def _size(
    row: dict[str, Any], path: str, where: Callable[[], str], problems: list[Problem]
) -> tuple[int, int] | None:
    height, width = row.get("height"), row.get("width")
    if _is_length(height) and _is_length(width):
        return int(height), int(width)
    try:
        size = read_header(path).upright_size
    except UserError as error:
        problems.append(Problem("unreadable-image", where(), f"no size is stated, and {error} Left out"))
        return None
    message = f"no usable width and height: {size[1]} x {size[0]} read from the file"
    problems.append(Problem("missing-size", where(), message))
    return size


# --- annotations ------------------------------------------------------------------------------------------


def _objects(
    rows: list[Any], classes: ClassTable, images: list[RawImage], known_ids: np.ndarray, places: _Places
) -> tuple[RawObjects, np.ndarray, list[Problem]]:
    """Columns of the objects with a known image and category, and the position of each in `rows`."""
    problems = []
    positions = []
    for position, row in enumerate(rows):
        fault = _fault(row)
        if fault is None:
            positions.append(position)
        else:
            problems.append(Problem(fault[0], places.annotation(row, position), f"{fault[1]}: dropped"))
    sound = [rows[position] for position in positions]
    at = np.array(positions, dtype=np.int64)
    image_id = np.fromiter((row["image_id"] for row in sound), np.int64, len(sound))
    category_id = np.fromiter((row["category_id"] for row in sound), np.int64, len(sound))

    image_known = np.isin(image_id, known_ids)
    category_known = np.isin(category_id, classes.category_ids)
    for index in np.flatnonzero(~(image_known & category_known)):
        if not image_known[index]:
            kind, what = "unknown-image", f"no image has the id {image_id[index]}"
        else:
            kind, what = "unknown-category", f"no category has the id {category_id[index]}"
        where = places.annotation(sound[index], int(at[index]))
        problems.append(Problem(kind, where, f"{what}: dropped"))

    # Objects of an image that was left out go with it: its own problem says so.
    image_index, image_usable = _positions(image_id, [image.image_id for image in images])
    labels, _ = _positions(category_id, classes.category_ids)
    keep = np.flatnonzero(category_known & image_usable)
    kept = [sound[index] for index in keep]

    xywh = _boxes([row["bbox"] for row in kept])
    with np.errstate(over="ignore", invalid="ignore"):  # judged in assembly.check_boxes
        boxes_xyxy = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    objects = RawObjects(
        image_index=image_index[keep],
        labels=labels[keep],
        boxes_xyxy=boxes_xyxy,
        crowd=np.array([bool(row.get("iscrowd")) for row in kept], dtype=bool),
        difficult=np.zeros(len(kept), dtype=bool),
        area=_areas(kept, at[keep], places, problems),
        annotation_ids=_annotation_ids(kept, at[keep], places, problems),
    )
    return objects, at[keep], problems


def _fault(row: Any) -> tuple[str, str] | None:
    """What makes an annotation unusable by itself, as (kind, message)."""
    if not isinstance(row, dict):
        return "malformed-annotation", "not an object"
    if not _is_id(row.get("image_id")) or not _is_id(row.get("category_id")):
        return "malformed-annotation", "image_id and category_id must be integers"
    if "bbox" not in row:
        return "malformed-annotation", "no bbox"
    box = row["bbox"]
    if not isinstance(box, list) or len(box) != 4:
        return "malformed-annotation", "bbox must be a list of four numbers, [x, y, width, height]"
    if not _NUMBERS.issuperset(map(type, box)):
        return "not-a-number", f"bbox {box!r:.80} must be made of numbers"
    return None


def _boxes(rows: list[list[float]]) -> np.ndarray:
    """(N, 4) float64."""
    try:
        return np.array(rows, dtype=np.float64).reshape(-1, 4)
    except OverflowError:  # JSON's integers have no bound
        bounded = [
            [max(-1e300, min(1e300, value)) if type(value) is int else value for value in row] for row in rows
        ]
        return np.array(bounded, dtype=np.float64).reshape(-1, 4)


def _annotation_ids(
    rows: list[dict[str, Any]], at: np.ndarray, places: _Places, problems: list[Problem]
) -> np.ndarray:
    """The annotations' own ids; a free one where there is none or it is taken."""
    ids: list[int | None] = []
    taken: set[int] = set()
    for row, position in zip(rows, at.tolist(), strict=True):
        own = row.get("id")
        if _is_id(own) and own not in taken:
            taken.add(own)
            ids.append(own)
            continue
        ids.append(None)
        where = places.of("annotations", position)
        if _is_id(own):
            message = f"the id {own} is taken: kept under a free one"
            problems.append(Problem("duplicate-annotation-id", where, message))
        else:
            problems.append(Problem("missing-annotation-id", where, "no integer id: kept under a free one"))
    free = (number for number in itertools.count(1) if number not in taken)
    return np.array([next(free) if own is None else own for own in ids], dtype=np.int64)


def _areas(
    rows: list[dict[str, Any]], at: np.ndarray, places: _Places, problems: list[Problem]
) -> np.ndarray:
    """(N,) float64, NaN where no area is stated or it cannot be one."""
    areas = np.full(len(rows), np.nan)
    for index, row in enumerate(rows):
        area = row.get("area")
        if isinstance(area, int | float) and 0 <= area <= _LARGEST_AREA:
            areas[index] = area
        elif area is not None:
            where = places.annotation(row, int(at[index]))
            problems.append(Problem("bad-area", where, f"{area!r:.80} is no area: width x height instead"))
    return areas


def _positions(values: np.ndarray, among: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
    """The position of each value in `among` (any order, no repeats), and whether it is there at all."""
    table = np.array(list(among), dtype=np.int64)
    if len(table) == 0:
        return np.zeros(len(values), dtype=np.int64), np.zeros(len(values), dtype=bool)
    order = np.argsort(table)
    found = np.minimum(np.searchsorted(table[order], values), len(table) - 1)
    return order[found], table[order[found]] == values


def _is_id(value: Any) -> TypeGuard[int]:
    # `type is`, because True is an int; bounded, because JSON's integers are not.
    return type(value) is int and -(2**63) <= value < 2**63


def _is_length(value: Any) -> TypeGuard[float]:
    return (_is_id(value) or (type(value) is float and value.is_integer())) and 0 < value < 2**31

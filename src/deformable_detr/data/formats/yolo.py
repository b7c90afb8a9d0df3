"""YOLO layout: a YAML file that names classes and splits, one text file of boxes per image.

    data.yaml            path (optional), train, val, test: each a folder of images, a list of folders, or
                         a .txt with one image per line; names: a list, or index: name
    images/…/a.jpg       labels/…/a.txt: the last folder called images becomes labels; without one, beside it

A row is `class cx cy w h`, the last four as fractions of the image's width and height. A row of a class and
three or more points (`class x y x y x y …`: segments, oriented boxes) becomes its bounding box, and is
reported once per file; so are keypoints after the box, where the YAML announces them by `kpt_shape`.
An image without a label file, or with an empty one, has no objects.

Sizes come from the images' headers, after the rotation that EXIF asks for: this layout states none. Image
ids: see `assembly.image_ids`, over all splits. Category ids are the indices in `names`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ...errors import UserError
from ...structures import ClassTable
from ..images import IMAGE_SUFFIXES, read_header
from ..records import Problem, Split
from .assembly import (
    RawImage,
    RawObjects,
    assemble,
    image_ids,
    path_inside,
    read_annotation,
    relative,
)

LOOKED_FOR = "data.yaml or another *.yaml with names and train, val or test (YOLO)"

_SPLITS = ("train", "val", "test")
_USUAL_FILES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
# Boxes may well leave the image, but a row beyond this counts in pixels.
_LARGEST_FRACTION = 2.0
_NOTHING = ("", "~", "null", "Null", "NULL")  # YAML's ways to say it


@dataclass(frozen=True)
class _Config:
    """`root`: what paths may not leave. `base`: what the entries of `splits` are relative to."""

    file: str
    root: str
    base: str
    classes: ClassTable
    splits: dict[str, list[str]]
    keypoints: bool
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class _Listed:
    """An image of a split. `name`: its path below the root. `where`: what lists it."""

    path: str
    name: str
    where: str


def present(root: Path) -> bool:
    return bool(_files(root))


def splits(root: Path) -> tuple[str, ...]:
    return tuple(_config(root).splits)


def read(root: Path, split: str) -> Split:
    """Raises UserError where the YAML file or a path in it cannot be used."""
    config = _config(root)
    problems = list(config.problems)
    listed = _listed(config, split, problems)
    ids = image_ids([*(item.name for item in listed), *_names_of_other_splits(config, split)])

    images: list[RawImage] = []
    rows = _Rows(config.classes, config.keypoints)
    for item in listed:
        try:
            size = read_header(item.path).upright_size
        except UserError as error:
            problems.append(Problem("unreadable-image", item.where, f"{error} Left out"))
            continue
        file = _label_file(item, config.root)
        called = relative(file, config.root)
        if os.path.isfile(file):
            try:
                text = read_annotation(file).decode("utf-8-sig")
            except (UserError, UnicodeDecodeError) as error:
                problems.append(Problem("unreadable-labels", called, f"{error}: its image is left out"))
                continue
            rows.read(text, called, len(images), size)
        images.append(RawImage(item.path, item.name, ids[item.name], size))

    problems += _labels_without_image(config, split, listed)
    problems += rows.problems
    records, box_problems = assemble(images, rows.objects(), rows.places.__getitem__)
    problems += box_problems
    return Split(split, "yolo", Path(config.file), config.classes, records, problems=tuple(problems))


# --- the YAML file ----------------------------------------------------------------------------------------


def _files(root: Path) -> list[Path]:
    """Files that may describe the data set; one that has the usual name wins."""
    if root.is_file():
        return [root] if root.suffix in (".yaml", ".yml") else []
    if not root.is_dir():
        return []
    for name in _USUAL_FILES:
        if (root / name).is_file():
            return [root / name]
    found = []
    for file in sorted([*root.glob("*.yaml"), *root.glob("*.yml")]):
        try:
            content = _load(file)
        except UserError:  # some other tool's file, which nobody asked to be understood
            continue
        if "names" in content and any(split in content for split in _SPLITS):
            found.append(file)
    return found


def _load(file: Path) -> dict[str, Any]:
    data = read_annotation(str(file))
    try:
        # BaseLoader makes dicts, lists and strings only: tags are inert, and a class called "no" is no False.
        content = yaml.load(data, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is not valid YAML ({' '.join(str(error).split())}): mend it.") from error
    if not isinstance(content, dict):
        raise UserError(
            f"{file} does not describe a YOLO data set: it should hold names and train, val or test."
        )
    return content


def _config(root: Path) -> _Config:
    files = _files(root)
    if len(files) > 1:
        raise UserError(
            f"{root} has several YAML files that describe a data set: name one of "
            f"{', '.join(map(str, files))}."
        )
    file = files[0]
    content = _load(file)
    home = str(file.parent)
    problems: list[Problem] = []
    base = _base(content.get("path", ""), file, home, problems)
    entries = {}
    for split in _SPLITS:
        value = content.get(split, "")
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(item, str) for item in values):
            raise UserError(f"{split} of {file} must be a path or a list of paths.")
        values = [item for item in values if item not in _NOTHING]
        if values:
            entries[split] = values
    return _Config(
        file=str(file),
        root=home,
        base=base,
        classes=_classes(content, file, problems),
        splits=entries,
        keypoints="kpt_shape" in content,
        problems=tuple(problems),
    )


def _base(value: Any, file: Path, home: str, problems: list[Problem]) -> str:
    """The folder that `path` means. It is often the author's own, which no one else has."""
    if not isinstance(value, str):
        raise UserError(f"path of {file} must be a folder, not a {type(value).__name__}.")
    if value in _NOTHING:
        return home
    base = path_inside(home, value)
    if base is None and os.path.isdir(os.path.join(home, value)):
        raise UserError(
            f"path of {file} leads out of its folder, to {value}: name that folder as the data set, with "
            f"{file.name} in it."
        )
    if base is None or not os.path.isdir(base):
        message = f"path {value!r} is not there: paths are taken as relative to this file"
        problems.append(Problem("path-not-found", file.name, message))
        return home
    return base


def _classes(content: dict[str, Any], file: Path, problems: list[Problem]) -> ClassTable:
    names = content.get("names")
    if isinstance(names, list):
        names = {str(index): name for index, name in enumerate(names)}
    if not isinstance(names, dict) or not names:
        raise UserError(f"{file} has no names: list the classes as `names: [first, second]`.")
    table: dict[int, str] = {}
    for key, name in names.items():
        if not (isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) < 10):
            raise UserError(f"names of {file} must be numbered 0, 1, 2, …, not {key!r}.")
        if not isinstance(name, str):
            raise UserError(f"class {key} in names of {file} must be a text, not a {type(name).__name__}.")
        table[int(key)] = name
    count = content.get("nc", str(len(table)))
    if count != str(len(table)):
        problems.append(
            Problem("class-count", file.name, f"nc is {count}, but there are {len(table)} names: names count")
        )
    ids = sorted(table)
    return ClassTable(tuple(table[index] for index in ids), tuple(ids))


# --- images -----------------------------------------------------------------------------------------------


def _listed(config: _Config, split: str, problems: list[Problem]) -> list[_Listed]:
    """The images of a split, each once."""
    found: dict[str, _Listed] = {}
    for entry in config.splits[split]:
        path = _entry(config, split, entry)
        images = _in_list(config, path, problems) if os.path.isfile(path) else _in_folder(config, path)
        for item in images:
            if item.path in found:
                message = f"{item.name!r} is listed again: read once"
                problems.append(Problem("duplicate-image", item.where, message))
            else:
                found[item.path] = item
    return list(found.values())


def _names_of_other_splits(config: _Config, split: str) -> list[str]:
    names = []
    for other in config.splits:
        if other != split:
            try:
                names += [item.name for item in _listed(config, other, [])]
            except UserError:  # its own reader will say so; here it has no names to take into account
                continue
    return names


def _entry(config: _Config, split: str, entry: str) -> str:
    """The folder or list that an entry means, inside the data set."""
    path = path_inside(config.root, config.base, entry)
    if path is None or not os.path.exists(path):
        # Roboflow writes ../train/images into the file that lies beside train/.
        trimmed = entry
        while trimmed.startswith("../"):
            trimmed = trimmed.removeprefix("../")
        inner = path_inside(config.root, config.base, trimmed)
        if inner is not None and os.path.exists(inner):
            return inner
    if path is None:
        raise UserError(
            f"{split} of {config.file} leads out of the data set, to {entry}: give a path below "
            f"{config.root}."
        )
    if not os.path.exists(path):
        raise UserError(f"{split} of {config.file} names {entry}, but there is no {path}: correct the path.")
    return path


def _in_folder(config: _Config, folder: str) -> Iterator[_Listed]:
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for file in sorted(files):
            if os.path.splitext(file)[1].lower() in IMAGE_SUFFIXES:
                path = os.path.join(parent, file)
                name = relative(path, config.root)
                yield _Listed(path, name, name)


def _in_list(config: _Config, file: str, problems: list[Problem]) -> Iterator[_Listed]:
    """Lines are relative to the list or to the data set, or absolute."""
    called = relative(file, config.root)
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{file} cannot be read as a list of images ({error}): save it as UTF-8 text."
        ) from error
    for number, line in enumerate(lines, start=1):
        entry, where = line.strip(), f"{called}:{number}"
        if not entry:
            continue
        bases = (os.path.dirname(file), config.base, config.root)
        paths = [path for base in bases if (path := path_inside(config.root, base, entry)) is not None]
        path = next(filter(os.path.isfile, paths), None)
        if path is not None:
            yield _Listed(path, relative(path, config.root), where)
        elif paths:
            problems.append(Problem("missing-image", where, f"there is no file {entry!r}: left out"))
        else:
            problems.append(Problem("outside-root", where, f"{entry!r} leads out of the data set: left out"))


# --- labels -----------------------------------------------------------------------------------------------


def _label_file(item: _Listed, root: str) -> str:
    parts = item.name.split("/")
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return os.path.normpath(os.path.join(root, *parts[:-1], os.path.splitext(parts[-1])[0] + ".txt"))


def _labels_without_image(config: _Config, split: str, listed: list[_Listed]) -> list[Problem]:
    """Label files that no image claims. Only below folders: a list may leave images out on purpose."""
    claimed = {_label_file(item, config.root) for item in listed}
    problems = []
    for entry in config.splits[split]:
        folder = _entry(config, split, entry)
        if os.path.isfile(folder):
            continue
        any_image = _Listed("", f"{relative(folder, config.root)}/any.jpg", "")
        labels = os.path.dirname(_label_file(any_image, config.root))
        if labels == folder:  # labels beside the images: a text file may be anything
            continue
        for parent, folders, files in os.walk(labels):
            folders.sort()
            for file in sorted(files):
                path = os.path.join(parent, file)
                if file.endswith(".txt") and file != "classes.txt" and path not in claimed:
                    problems.append(
                        Problem("label-without-image", relative(path, config.root), "no image belongs to it")
                    )
    return problems


class _Rows:
    """Collects the rows of label files as columns; `places` tells file and line of each."""

    def __init__(self, classes: ClassTable, keypoints: bool) -> None:
        self.places: list[str] = []
        self.problems: list[Problem] = []
        self._index_of = {category_id: index for index, category_id in enumerate(classes.category_ids)}
        self._keypoints = keypoints
        self._image_index: list[int] = []
        self._labels: list[int] = []
        self._boxes: list[tuple[float, float, float, float]] = []

    def read(self, text: str, called: str, image_index: int, size: tuple[int, int]) -> None:
        """The rows of one file. size: (H, W) of its image, in pixels."""
        polygons: list[int] = []
        for line, row in enumerate(text.splitlines(), start=1):
            columns = row.split()
            if not columns:
                continue
            where = f"{called}:{line}"
            try:
                number, *values = [float(column) for column in columns]
            except ValueError:
                self._drop("not-a-number", where, f"{row.strip()!r:.80} is not made of numbers")
                continue
            if number not in self._index_of:
                self._drop("class-out-of-range", where, f"names has no class {columns[0]!r:.20}")
                continue
            if max(values, default=0.0) > _LARGEST_FRACTION:
                what = f"{max(values):g} is not a fraction of the image's width or height"
                self._drop("not-a-fraction", where, what)
                continue
            if len(values) == 4 or (self._keypoints and len(values) > 4):
                box = _from_centre(values[:4], size)
            elif len(values) >= 6 and len(values) % 2 == 0:
                box = _around(values, size)
                polygons.append(line)
            else:
                self._drop("wrong-column-count", where, f"{len(columns)} columns, not 5 (class cx cy w h)")
                continue
            self._image_index.append(image_index)
            self._labels.append(self._index_of[int(number)])
            self._boxes.append(box)
            self.places.append(where)
        if polygons:
            message = f"{len(polygons)} polygons, the first one here: taken as their bounding boxes"
            self.problems.append(Problem("polygon", f"{called}:{polygons[0]}", message))

    def objects(self) -> RawObjects:
        count = len(self._boxes)
        return RawObjects(
            image_index=np.array(self._image_index, dtype=np.int64),
            labels=np.array(self._labels, dtype=np.int64),
            boxes_xyxy=np.array(self._boxes, dtype=np.float64).reshape(-1, 4),
            crowd=np.zeros(count, dtype=bool),
            difficult=np.zeros(count, dtype=bool),
            area=np.full(count, np.nan),
            annotation_ids=np.arange(1, count + 1),
        )

    def _drop(self, kind: str, where: str, what: str) -> None:
        self.problems.append(Problem(kind, where, f"{what}: dropped"))


def _from_centre(values: list[float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    height, width = size
    cx, cy, w, h = values
    return (cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height


def _around(points: list[float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    height, width = size
    if not all(map(math.isfinite, points)):  # min and max would depend on where the NaN stands
        return (math.nan,) * 4
    xs, ys = points[0::2], points[1::2]
    return min(xs) * width, min(ys) * height, max(xs) * width, max(ys) * height

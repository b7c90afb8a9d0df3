"""Pascal VOC layout: one XML file per image, one list of image names per split.

    Annotations/NAME.xml  JPEGImages/NAME.jpg  ImageSets/Main/S.txt     S is the split, one NAME per line

in the folder itself, in VOC2007/ (or another year) below it, or in VOCdevkit/VOC2007/. Lists of single
classes (`cat_train.txt`, with a second column of -1, 0, 1) are not splits.

Coordinates are taken as they are written: xmin and xmax are the box's left and right edge, counted from the
left edge of the first pixel. The VOC challenge itself counted pixels from 1 and included the last one, which
would make it (xmin - 1, ymin - 1, xmax, ymax). Annotation tools of today (labelImg, CVAT, Roboflow) write
edges, and so does BCCD, whose COCO edition agrees to the digit; for true VOC data the difference is a
pixel at the left and top.

Classes: the names in all splits of the data set, sorted, so that train and val agree; category ids 0, 1, ….
Image ids: see `assembly.image_ids`, over the names in all splits. `difficult` is kept. No image is opened,
except where its XML states no size.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

import numpy as np

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

LOOKED_FOR = "Annotations/*.xml with ImageSets/Main/*.txt and JPEGImages (Pascal VOC)"

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass
class _Object:
    """`line`: of its <object>; `box_line`: of its <bndbox>, where there is one."""

    line: int
    box_line: int
    name: str = ""
    difficult: bool = False
    corners: dict[str, str] = field(default_factory=dict)


@dataclass
class _Annotation:
    file_name: str = ""
    size: dict[str, str] = field(default_factory=dict)
    objects: list[_Object] = field(default_factory=list)


def present(root: Path) -> bool:
    return bool(_homes(root))


def splits(root: Path) -> tuple[str, ...]:
    return tuple(_lists(_home(root)))


def read(root: Path, split: str) -> Split:
    """Raises UserError where a list cannot be read."""
    home = _home(root)
    lists = _lists(home)
    names = {name: _names(file) for name, file in lists.items()}
    ids = image_ids(name for lines in names.values() for _, name in lines)
    pictures = _pictures(home)
    list_called = relative(str(lists[split]), str(home))

    problems: list[Problem] = []
    images: list[RawImage] = []
    annotations: list[tuple[str, _Annotation]] = []
    class_names: set[str] = set()
    seen: set[str] = set()
    for line, name in names[split]:
        where = f"{list_called}:{line}"
        if name in seen:
            problems.append(Problem("duplicate-image", where, f"{name!r} is listed again: read once"))
            continue
        seen.add(name)
        file = path_inside(str(home), "Annotations", f"{name}.xml")
        if file is None:
            problems.append(Problem("outside-root", where, f"{name!r} leads out of the data set: left out"))
            continue
        called = relative(file, str(home))
        if not os.path.isfile(file):
            problems.append(Problem("missing-annotation", where, f"there is no file {called!r}: left out"))
            continue
        annotation = _parse(file)
        if isinstance(annotation, Problem):
            problems.append(Problem(annotation.kind, f"{called}{annotation.where}", annotation.message))
            continue
        class_names.update(item.name for item in annotation.objects)
        image = _image(name, ids[name], annotation, pictures, home, called, problems)
        if image is not None:
            images.append(image)
            annotations.append((called, annotation))

    others = {name for lines in names.values() for _, name in lines} - seen
    class_names |= _class_names(home, others)
    class_names.discard("")
    classes = ClassTable.from_names(sorted(class_names))

    objects, lines, more = _objects(annotations, classes)
    records, box_problems = assemble(images, objects, lines.__getitem__)
    return Split(
        split,
        "voc",
        home / "Annotations",
        classes,
        records,
        problems=tuple(problems) + tuple(more) + tuple(box_problems),
    )


# --- files ------------------------------------------------------------------------------------------------


def _homes(root: Path) -> list[Path]:
    """The folders that hold Annotations and ImageSets: the root itself, or years below it."""
    if not root.is_dir():
        return []
    candidates = [root] if _is_home(root) else [*root.glob("VOC[0-9]*"), *root.glob("VOCdevkit/VOC[0-9]*")]
    return sorted(folder for folder in candidates if _is_home(folder))


def _is_home(folder: Path) -> bool:
    return (folder / "Annotations").is_dir() and any((folder / "ImageSets" / "Main").glob("*.txt"))


def _home(root: Path) -> Path:
    homes = _homes(root)
    if len(homes) > 1:
        raise UserError(
            f"{root} holds several Pascal VOC data sets: name one of {', '.join(map(str, homes))}."
        )
    return homes[0]


def _lists(home: Path) -> dict[str, Path]:
    files = sorted((home / "ImageSets" / "Main").glob("*.txt"))
    return {file.stem: file for file in files if not _is_class_list(file, home)}


def _is_class_list(file: Path, home: Path) -> bool:
    first = next((name for _, name in _names(file)), "")
    return (
        re.fullmatch(r"\S+\s+(-1|0|1)", first) is not None
        and not (home / "Annotations" / f"{first}.xml").exists()
    )


def _names(file: Path) -> list[tuple[int, str]]:
    """(line number, image name) of a list."""
    try:
        text = read_annotation(str(file)).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not text in UTF-8 ({error}): save it as such.") from error
    return [(line, name.strip()) for line, name in enumerate(text.splitlines(), start=1) if name.strip()]


def _pictures(home: Path) -> dict[str, list[str]]:
    """File names in JPEGImages by their stem."""
    folder = home / "JPEGImages"
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise UserError(
            f"{folder} cannot be listed ({error.strerror}): put the images of the data set there."
        ) from error
    by_stem: dict[str, list[str]] = {}
    for name in names:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in IMAGE_SUFFIXES:
            by_stem.setdefault(stem, []).append(name)
    return by_stem


def _image(
    name: str,
    image_id: int,
    annotation: _Annotation,
    pictures: dict[str, list[str]],
    home: Path,
    called: str,
    problems: list[Problem],
) -> RawImage | None:
    """The image of the annotation: the one called as the XML file; else the one that its <filename> names."""
    stated = annotation.file_name
    candidates = pictures.get(name, []) or pictures.get(os.path.splitext(stated)[0], [])
    if not candidates:
        problems.append(
            Problem("missing-image", called, f"there is no image {name!r} in JPEGImages: left out")
        )
        return None
    file_name = stated if stated in candidates else candidates[0]
    path = str(home / "JPEGImages" / file_name)

    lengths = [_number(annotation.size.get(side, "")) for side in ("height", "width")]
    height, width = (int(length) if length.is_integer() and 0 < length < 2**31 else 0 for length in lengths)
    if height and width:
        return RawImage(path, file_name, image_id, (height, width))
    try:
        height, width = read_header(path).upright_size
    except UserError as error:
        problems.append(Problem("unreadable-image", called, f"no size is stated, and {error} Left out"))
        return None
    problems.append(
        Problem("missing-size", called, f"no usable width and height: {width} x {height} read from the file")
    )
    return RawImage(path, file_name, image_id, (height, width))


def _class_names(home: Path, names: Iterable[str]) -> set[str]:
    """Class names in the annotations of other splits, as far as these can be read."""
    found: set[str] = set()
    for name in names:
        file = path_inside(str(home), "Annotations", f"{name}.xml")
        if file is not None and os.path.isfile(file):
            annotation = _parse(file)
            if isinstance(annotation, _Annotation):
                found.update(item.name for item in annotation.objects)
    return found


# --- XML --------------------------------------------------------------------------------------------------


class _RefusedError(Exception):
    """Not an annotation of Pascal VOC, or one with a document type: the door of entity bombs and of external
    files, which no annotation needs."""


def _parse(file: str) -> _Annotation | Problem:
    """The annotation, or why it is unreadable (`where` is then ":line", or empty).

    With expat, because it knows the line of each element and lets a document type be refused.
    """
    try:
        data = read_annotation(file)
    except UserError as error:
        return Problem("unreadable-annotation", "", f"{error} Left out")
    if not data.strip():
        return Problem("unreadable-annotation", "", "the file is empty: left out")

    annotation = _Annotation()
    path: list[str] = []
    text: list[str] = []
    parser = expat.ParserCreate()
    parser.buffer_text = True

    def doctype(*_: object) -> None:
        raise _RefusedError("it declares a document type, which is refused")

    def start(tag: str, _: dict[str, str]) -> None:
        if not path and tag != "annotation":
            raise _RefusedError(f"its root is <{tag}>, not <annotation>")
        path.append(tag)
        text.clear()
        if path[1:] == ["object"]:
            line = parser.CurrentLineNumber
            annotation.objects.append(_Object(line, line))
        elif path[1:] == ["object", "bndbox"]:
            annotation.objects[-1].box_line = parser.CurrentLineNumber

    def end(tag: str) -> None:
        content = "".join(text).strip()
        text.clear()
        match path[1:]:
            case ["filename"]:
                annotation.file_name = content
            case ["size", side]:
                annotation.size[side] = content
            case ["object", "name"]:
                annotation.objects[-1].name = content
            case ["object", "difficult"]:
                annotation.objects[-1].difficult = content == "1"
            case ["object", "bndbox", corner]:
                annotation.objects[-1].corners[corner] = content
        path.pop()

    parser.StartDoctypeDeclHandler = doctype
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = text.append
    try:
        parser.Parse(data, True)
    except _RefusedError as error:
        where = f":{parser.CurrentLineNumber}"
        return Problem("unreadable-annotation", where, f"{error}: left out")
    except expat.ExpatError as error:
        return Problem(
            "unreadable-annotation",
            f":{error.lineno}",
            f"not well-formed XML ({expat.ErrorString(error.code)}): left out",
        )
    except (ValueError, LookupError) as error:  # an encoding that Python or expat does not have
        return Problem("unreadable-annotation", "", f"not readable XML ({error}): left out")
    return annotation


# --- objects ----------------------------------------------------------------------------------------------


def _objects(
    annotations: list[tuple[str, _Annotation]], classes: ClassTable
) -> tuple[RawObjects, list[str], list[Problem]]:
    """Columns of the objects that have a name and four numbers, and the file and line of each."""
    index_of = {name: index for index, name in enumerate(classes.names)}
    image_index: list[int] = []
    labels: list[int] = []
    boxes: list[list[float]] = []
    difficult: list[bool] = []
    places: list[str] = []
    problems: list[Problem] = []
    for position, (called, annotation) in enumerate(annotations):
        for item in annotation.objects:
            missing = [corner for corner in _CORNERS if corner not in item.corners]
            if not item.name:
                problems.append(
                    Problem("missing-name", f"{called}:{item.line}", "object without a name: dropped")
                )
                continue
            if missing:
                message = f"{item.name!r} has no {', '.join(missing)}: dropped"
                problems.append(Problem("malformed-box", f"{called}:{item.box_line}", message))
                continue
            box = [_number(item.corners[corner]) for corner in _CORNERS]
            wrong = [item.corners[corner] for corner in _CORNERS if not _is_number(item.corners[corner])]
            if wrong:
                message = f"{wrong[0]!r:.80} of {item.name!r} is not a number: dropped"
                problems.append(Problem("not-a-number", f"{called}:{item.box_line}", message))
                continue
            image_index.append(position)
            labels.append(index_of[item.name])
            boxes.append(box)
            difficult.append(item.difficult)
            places.append(f"{called}:{item.box_line}")
    count = len(boxes)
    objects = RawObjects(
        image_index=np.array(image_index, dtype=np.int64),
        labels=np.array(labels, dtype=np.int64),
        boxes_xyxy=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        crowd=np.zeros(count, dtype=bool),
        difficult=np.array(difficult, dtype=bool),
        area=np.full(count, np.nan),
        annotation_ids=np.arange(1, count + 1),
    )
    return objects, places, problems


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _number(text: str) -> float:
    return float(text) if _is_number(text) else float("nan")

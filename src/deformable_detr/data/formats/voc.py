"""Pascal VOC layout: one XML file per image, and lists of image names or folders as splits.

voc_files.py describes the locations of the files.

Coordinates are used unchanged: xmin and xmax are the left and right edge of the box, counted from the
left edge of the first pixel. The VOC challenge itself counted pixels from 1 and included the last one, so
that a box would be (xmin - 1, ymin - 1, xmax, ymax). Current annotation tools (labelImg, CVAT, Roboflow)
write edges, and so does BCCD, whose COCO version has exactly the same numbers; for the original VOC data the
boxes are one pixel too small at the left and top.

The classes are the sorted names in all splits of the data set, so that train and val agree; category ids are
0, 1, …. `assembly.image_ids` assigns image ids over the names in all splits. `difficult` is kept. An image is
opened only if its XML states no usable size.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ...detections import ClassTable
from ..records import Problem, Split
from . import values
from .assembly import RawImage, RawObjects, assemble, image_ids, relative, size_of
from .lookup import files_in
from .voc_files import LOOKED_FOR, Listed, Pictures, find_home, is_there
from .voc_xml import Annotation, parse

__all__ = ["LOOKED_FOR", "hint", "present", "read", "splits"]

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def present(root: Path) -> bool:
    return is_there(root)


def splits(root: Path) -> tuple[str, ...]:
    return tuple(find_home(root).splits)


def hint(root: Path) -> str:
    """Return the reason why `root` is not a data set in VOC layout, if a file suggests that it should be.

    Otherwise, return an empty string.
    """
    lists = files_in(root / "ImageSets" / "Main", ".txt")
    return f"{lists[0]} is there, but no folder Annotations" if lists else ""


def read(root: Path, split: str) -> Split:
    """Read one split, whose name is one of `splits`.

    Raises:
        UserError: if there are several data sets, a list cannot be read, or no folder of pictures exists.
    """
    home = find_home(root)
    ids = image_ids(item.name for listed in home.splits.values() for item in listed)
    pictures = Pictures(home)

    problems: list[Problem] = []
    images: list[RawImage] = []
    annotations: list[tuple[str, Annotation]] = []
    class_names: set[str] = set()
    seen: set[str] = set()
    num_objects = 0
    for item in home.splits[split]:
        if item.name in seen:
            problems.append(
                Problem("duplicate-image", item.where, f"{item.name!r} is listed again: read once")
            )
            continue
        seen.add(item.name)
        if item.file is None:
            message = f"{item.name!r} leads out of the data set: left out"
            problems.append(Problem("outside-root", item.where, message))
            continue
        called = relative(item.file, str(home.root))
        if not os.path.isfile(item.file):
            problems.append(
                Problem("missing-annotation", item.where, f"there is no file {called!r}: left out")
            )
            continue
        annotation = parse(item.file)
        if isinstance(annotation, Problem):
            problems.append(Problem(annotation.kind, f"{called}{annotation.where}", annotation.message))
            continue
        num_objects += len(annotation.objects)
        class_names.update(each.name for each in annotation.objects)
        image = _image(item.name, ids[item.name], annotation, pictures, home.root, called, problems)
        if image is not None:
            images.append(image)
            annotations.append((called, annotation))

    others = [item for listed in home.splits.values() for item in listed if item.name not in seen]
    class_names |= _class_names(others)
    class_names.discard("")
    classes = ClassTable.from_names(sorted(class_names))

    objects, lines, more = _objects(annotations, classes)
    records, box_problems = assemble(images, objects, lines.__getitem__)
    return Split(
        split,
        "voc",
        home.source,
        classes,
        records,
        problems=tuple(problems) + tuple(more) + tuple(box_problems),
        num_listed_images=len(seen),
        num_listed_objects=num_objects,
    )


def _image(
    name: str,
    image_id: int,
    annotation: Annotation,
    pictures: Pictures,
    root: Path,
    called: str,
    problems: list[Problem],
) -> RawImage | None:
    path = pictures.of(name, annotation.file_name)
    if path is None:
        message = f"there is no image {name!r} in {pictures.called}: left out"
        problems.append(Problem("missing-image", called, message))
        return None
    stated = (values.length(annotation.size.get("height")), values.length(annotation.size.get("width")))
    size = size_of(stated, path, lambda: called, problems)
    return None if size is None else RawImage(path, pictures.name(path), image_id, size)


def _class_names(others: Iterable[Listed]) -> set[str]:
    """Return the class names in the annotations of other splits; unreadable annotations are skipped."""
    found: set[str] = set()
    for item in others:
        annotation = parse(item.file) if item.file is not None and os.path.isfile(item.file) else None
        if isinstance(annotation, Annotation):
            found.update(each.name for each in annotation.objects)
    return found


# --- objects ----------------------------------------------------------------------------------------------


def _objects(
    annotations: list[tuple[str, Annotation]], classes: ClassTable
) -> tuple[RawObjects, list[str], list[Problem]]:
    """Return the objects with a name and four numbers, their places, and a problem for each of the others.

    A place is a file and a line. `annotations`: (name of the file, content) of each image.
    """
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
            box = [values.number(item.corners[corner]) for corner in _CORNERS]
            sound = [value for value in box if value is not None]
            if len(sound) < len(_CORNERS):
                wrong = item.corners[_CORNERS[box.index(None)]]
                message = f"{wrong!r:.80} of {item.name!r} is not a number: dropped"
                problems.append(Problem("not-a-number", f"{called}:{item.box_line}", message))
                continue
            image_index.append(position)
            labels.append(index_of[item.name])
            boxes.append(sound)
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

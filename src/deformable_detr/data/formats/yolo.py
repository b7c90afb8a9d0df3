"""YOLO layout: a file that names classes and splits, and one text file of boxes per image.

yolo_files.py reads the file that names the classes and splits; yolo_rows.py reads the rows of the text files.

    images/…/a.jpg       labels/…/a.txt: the last folder named images is replaced by labels; if there is no
                         such folder or no such text file, the text file is next to the image

An image without a label file, or with an empty one, has no objects.

This layout states no sizes. They are read from the images' headers, with the rotation that EXIF requests.
`assembly.image_ids` assigns image ids over all splits. Category ids are the indices in `names`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...errors import UserError
from ..images import is_image, read_header
from ..records import Problem, Split
from .assembly import (
    RawImage,
    assemble,
    image_ids,
    read_annotation,
    read_lines,
    relative,
    respelt_names,
)
from .lookup import Files, NamedFiles, path_inside, walk
from .yolo_files import Config, find_files, hint, read_config, resolve
from .yolo_rows import Rows

__all__ = ["LOOKED_FOR", "hint", "present", "read", "splits"]

LOOKED_FOR = "data.yaml or another *.yaml with names and train, val or test, obj.data or classes.txt (YOLO)"


@dataclass(frozen=True)
class _Listed:
    """An image of a split. `name` is its path below the root; `where` is the location that lists it."""

    path: str
    name: str
    where: str


def present(root: Path) -> bool:
    return bool(find_files(root))


def splits(root: Path) -> tuple[str, ...]:
    return tuple(read_config(root).splits)


def read(root: Path, split: str) -> Split:
    """Read one split, whose name is one of `splits`.

    Raises:
        UserError: if the file that describes the data set, a path in it, or a list of images is unusable.
    """
    config = read_config(root)
    files = Files(config.root)
    problems = list(config.problems)
    listed = _listed(config, split, files, problems)
    num_missing = sum(problem.kind in ("missing-image", "outside-root") for problem in problems)
    ids = image_ids([*(item.name for item in listed), *_names_of_other_splits(config, split)])

    images: list[RawImage] = []
    claimed: set[str] = set()
    rows = Rows(config.classes, config.keypoints)
    for item in listed:
        file = _label_file(item, files)
        if file is not None:
            claimed.add(file)
        try:
            size = read_header(item.path).upright_size
        except UserError as error:
            problems.append(Problem("unreadable-image", item.where, f"{error} Left out"))
            continue
        if file is not None:
            called = relative(file, config.root)
            try:
                text = read_annotation(file).decode("utf-8-sig")
            except (UserError, UnicodeDecodeError) as error:
                problems.append(Problem("unreadable-labels", called, f"{error}: its image is left out"))
                continue
            rows.read(text, called, len(images), size)
        images.append(RawImage(item.path, item.name, ids[item.name], size))

    problems += _labels_without_image(config, split, files, claimed)
    problems += respelt_names(files, relative(config.file, config.root))
    problems += rows.finish()
    records, box_problems = assemble(images, rows.objects(), rows.places.__getitem__)
    problems += box_problems
    return Split(
        split,
        "yolo",
        Path(config.file),
        config.classes,
        records,
        problems=tuple(problems),
        num_listed_images=len(listed) + num_missing,
        num_listed_objects=rows.num_read,
    )


# --- images -----------------------------------------------------------------------------------------------


def _listed(config: Config, split: str, files: Files, problems: list[Problem]) -> list[_Listed]:
    """Return the images of a split without repeats; add a problem for each repeated or missing one.

    Raises:
        UserError: if a folder or list of the split does not exist, is outside the data set or cannot be read.
    """
    found: dict[str, _Listed] = {}
    for entry in config.splits[split]:
        path = _entry(config, split, entry, files)
        images = _in_list(config, path, files, problems) if os.path.isfile(path) else _in_folder(config, path)
        for item in images:
            if item.path in found:
                message = f"{item.name!r} is listed again: read once"
                problems.append(Problem("duplicate-image", item.where, message))
            else:
                found[item.path] = item
    return list(found.values())


def _names_of_other_splits(config: Config, split: str) -> list[str]:
    names = []
    for other in config.splits:
        if other != split:
            try:
                names += [item.name for item in _listed(config, other, Files(config.root), [])]
            except UserError:  # reported when that split is read; here its names are just unknown
                continue
    return names


def _entry(config: Config, split: str, entry: str, files: Files) -> str:
    """Return the path of the folder or list to which an entry of a split refers.

    Raises:
        UserError: if it does not exist, or is outside the data set.
    """
    found = resolve(files, config.base, entry)
    if found is not None:
        return found
    path = path_inside(config.root, config.base, entry)
    outside = os.path.join(config.base, entry)
    if path is None and os.path.exists(outside):
        raise UserError(
            f"{split} of {config.file} leads out of the data set, to {entry}: give a path below "
            f"{config.root}."
        )
    expected = path or os.path.join(config.root, entry.replace("../", "").lstrip("/"))
    raise UserError(f"{split} of {config.file} names {entry}, but there is no {expected}: correct the path.")


def _in_folder(config: Config, folder: str) -> Iterator[_Listed]:
    for parent, names in walk(folder):
        for file in filter(is_image, names):
            path = os.path.join(parent, file)
            name = relative(path, config.root)
            yield _Listed(path, name, name)


def _in_list(config: Config, file: str, files: Files, problems: list[Problem]) -> Iterator[_Listed]:
    """Yield the existing images of a list, and add a problem for each of the others.

    The lines of the list are paths: absolute ones, or relative to the list's folder or the data set's.
    """
    called = relative(file, config.root)
    lines = [(number, line.strip()) for number, line in enumerate(read_lines(Path(file)), start=1)]
    lines = [(number, line) for number, line in lines if line]
    folders = tuple(dict.fromkeys((os.path.dirname(file), config.base, config.root)))
    found = NamedFiles(files, folders, [line for _, line in lines])
    for number, line in lines:
        where = f"{called}:{number}"
        path = found.paths.get(line)
        if path is not None:
            yield _Listed(path, relative(path, config.root), where)
        elif found.missing(line):
            problems.append(Problem("missing-image", where, f"there is no file {line!r}: left out"))
        else:
            problems.append(Problem("outside-root", where, f"{line!r} leads out of the data set: left out"))


# --- labels -----------------------------------------------------------------------------------------------


def _label_names(name: str) -> list[str]:
    """Return the paths below the root at which the label file of an image may be, the preferred one first."""
    *folders, last = name.split("/")
    file = f"{os.path.splitext(last)[0]}.txt"
    names = ["/".join([*folders, file])]
    for index in range(len(folders) - 1, -1, -1):
        if folders[index].lower() == "images":
            names.insert(0, "/".join([*folders[:index], "labels", *folders[index + 1 :], file]))
            break
    return names


def _label_file(item: _Listed, files: Files) -> str | None:
    found = (files.find(files.root, name) for name in _label_names(item.name))
    return next((file for file in found if file is not None), None)


def _labels_without_image(config: Config, split: str, files: Files, claimed: set[str]) -> list[Problem]:
    """Return a problem for each label file of a split without an image.

    `claimed` are the paths of the label files that have an image. Entries of the split that are lists are not
    checked, because a list may omit images on purpose. Neither are folders in which labels are next to the
    images, because a text file there may be anything, nor files called classes.txt.
    """
    problems = []
    for entry in config.splits[split]:
        folder = _entry(config, split, entry, files)
        if os.path.isfile(folder):
            continue
        labels, *beside = _label_names(f"{relative(folder, config.root)}/any.jpg")
        place = files.folder(config.root, os.path.dirname(labels))
        if not beside or place is None:  # labels are next to the images, where a text file may be anything
            continue
        for parent, names in walk(place):
            for file in names:
                path = os.path.join(parent, file)
                if file.endswith(".txt") and file != "classes.txt" and path not in claimed:
                    problems.append(
                        Problem("label-without-image", relative(path, config.root), "no image belongs to it")
                    )
    return problems

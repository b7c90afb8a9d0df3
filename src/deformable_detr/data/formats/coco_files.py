"""Locations of the files of a COCO data set: annotation files, and the folders of their images.

Exporters agree on the content of the JSON file, but not on its name and folder; `coco.py` lists the variants.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import nlargest
from itertools import chain
from pathlib import Path

from ..images import is_image
from .lookup import files_in, folders_in
from .splits import meaning

LOOKED_FOR = "annotations/*.json, *.json or */*.json with images, annotations and categories (COCO)"

# Beginnings of the names of COCO's other files in the same folder, which are not for object detection. Those
# with keypoints have boxes, too.
_OTHER_TASKS = ("captions_", "stuff_", "panoptic_", "image_info_")
_KEYPOINTS = "person_keypoints_"
_IMAGE_FOLDERS = ("images", "data", "JPEGImages")
_ROBOFLOW = "_annotations.coco.json"
_MOST_FILES = 50  # the maximum number of JSON files that are tried per folder
# The file's first key, or else its list of images. A COCO file of hundreds of megabytes is not parsed just to
# recognise it; the rest is checked when the file is read.
_BEGINNING = re.compile(
    rb'\s*\{(\s*"(annotations|categories|info|licenses|type|infos?|dataset)"\s*:\s*[\[{"]|.*"images"\s*:\s*\[)',
    re.DOTALL,
)
# Keys that only annotation files have: Label Studio's notes.json, for example, has only info and categories.
_CONTENT = re.compile(rb'"(images|annotations|file_name|bbox)"')
_PROBED_BYTES = 2**16
_NOT_THE_SPLIT = re.compile(
    r"(^|[-_. ]+)(instances?|annotations?|labels?|coco|bbox(es)?|detections?)(?=[-_. ]|$)"
)


@dataclass(frozen=True)
class Source:
    """The annotation file of a split, and the folders in which its images may be.

    `root` is the data set's folder, and `file` is the path of the annotation file. Of `folders`, the most
    likely one comes first.
    """

    root: str
    file: str
    folders: tuple[str, ...]


def find_sources(root: Path) -> dict[str, Source]:
    """Return the annotation files of a data set by the names of their splits; empty if there are none."""
    if root.is_file():
        return _of_file(root) if root.suffix.lower() == ".json" else {}
    if not root.is_dir():
        return {}
    annotations = [
        file for folder in folders_in(root, _holds_annotations) for file in files_in(Path(folder), ".json")
    ]
    instances = [file for file in annotations if file.stem.startswith("instances_")]
    found = {file.stem.removeprefix("instances_"): file for file in instances}
    if not found:
        found = _named(filter(_begins_as_coco, annotations))
    for file in sorted(root.glob(f"*/{_ROBOFLOW}")):
        found.setdefault(file.parent.name, file)
    if not found:
        found = dict(_one_file_each(root))
    if not found:
        found = _named(filter(_begins_as_coco, _likely_files(root)))
    return {
        name: Source(str(root), str(file), _image_folders(root, name, file)) for name, file in found.items()
    }


def _of_file(file: Path) -> dict[str, Source]:
    """Return the only split of a data set that is given as an annotation file: its name and `Source`."""
    if file.name == _ROBOFLOW:
        root, name = file.parent.parent, file.parent.name
    else:
        root = file.parent.parent if _holds_annotations(file.parent.name) else file.parent
        name = _split_name(file)
    return {name: Source(str(root), str(file), _image_folders(root, name, file))}


def _holds_annotations(folder: str) -> bool:
    return folder.lower() in ("annotations", "annotation")


def _one_file_each(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield (folder's name, file) for each folder with exactly one COCO file, such as train/labels.json.

    FiftyOne writes such folders.
    """
    for folder in folders_in(root, lambda name: not _holds_annotations(name)):
        files = [file for file in _likely_files(Path(folder)) if _begins_as_coco(file)]
        if len(files) == 1:
            yield Path(folder).name, files[0]


def _likely_files(folder: Path) -> list[Path]:
    """Return the JSON files of a folder that may be annotation files, at most _MOST_FILES, sorted by name.

    If a folder has more JSON files, most of them belong to one picture each. Such files have the name of a
    picture in the same folder, or are smaller than an annotation file for all pictures; therefore, the former
    are left out, and the largest of the rest are returned.
    """
    files = files_in(folder, ".json")
    if len(files) <= _MOST_FILES:
        return files
    pictures = {os.path.splitext(name)[0] for name in os.listdir(folder) if is_image(name)}
    others = (file for file in files if file.stem not in pictures)
    return sorted(nlargest(_MOST_FILES, others, key=_size))


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # a link that leads nowhere
        return 0


def _named(files: Iterable[Path]) -> dict[str, Path]:
    """Return the files by the part of their names that states the split, without those for other tasks.

    Those with keypoints are used only if there are no others. If two of these parts are equal, return the
    files by their whole names without suffix.
    """
    with_boxes = [file for file in files if not file.stem.startswith(_OTHER_TASKS)]
    kept = [file for file in with_boxes if not file.stem.startswith(_KEYPOINTS)] or with_boxes
    names = [_split_name(file) for file in kept]
    if len(set(names)) < len(names):
        names = [file.stem for file in kept]
    return dict(zip(names, kept, strict=True))


def _split_name(file: Path) -> str:
    """Return the part of a file's name that states the split, or the name without suffix if no part does.

    The result is train for train_annotations.json, train2017 for instances_train2017.json, and result for
    result.json.
    """
    return _NOT_THE_SPLIT.sub("", file.stem.removeprefix(_KEYPOINTS)).strip("-_. ") or file.stem


def _begins_as_coco(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            beginning = opened.read(_PROBED_BYTES)
            opened.seek(max(0, file.stat().st_size - _PROBED_BYTES))
            end = opened.read()
    except OSError:
        return True  # the reader reports why it cannot be read
    if beginning[:2] in (b"\xff\xfe", b"\xfe\xff"):
        beginning, end = beginning[2:].replace(b"\0", b""), end.replace(b"\0", b"")
    return (
        _BEGINNING.match(beginning.removeprefix(b"\xef\xbb\xbf")) is not None
        and _CONTENT.search(beginning + end) is not None
    )


def _image_folders(root: Path, split: str, file: Path) -> tuple[str, ...]:
    def means_the_split(name: str) -> bool:
        return meaning(name) == meaning(split)

    named = folders_in(root, means_the_split, split)
    inside: Iterable[str] = chain.from_iterable(
        (folder, *(os.path.join(folder, name) for name in _IMAGE_FOLDERS)) for folder in named
    )
    below = chain.from_iterable(folders_in(root / name, means_the_split, split) for name in _IMAGE_FOLDERS)
    own = (
        []
        if file.parent == root or _holds_annotations(file.parent.name)
        else [file.parent, *(file.parent / name for name in _IMAGE_FOLDERS)]
    )
    rest = (root / name for name in _IMAGE_FOLDERS)
    return tuple(dict.fromkeys(str(folder) for folder in (*inside, *below, *own, *rest, root)))


def hint(root: Path) -> str:
    """Return the reason why a JSON file of `root` that could be an annotation file is not used.

    If there is no such file, or all of them can be used, the result is an empty string.
    """
    files = [
        file
        for folder in (*folders_in(root, _holds_annotations), str(root))
        for file in _likely_files(Path(folder))
    ]
    for file in files:
        if file.stem.startswith(_OTHER_TASKS):
            return f"{file} is for another task of COCO; if it has boxes, name the file itself"
        if not _begins_as_coco(file):
            return f"{file} does not hold COCO's lists images, annotations and categories"
    return ""

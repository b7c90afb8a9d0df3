"""The file that describes a YOLO data set: a YAML file, Darknet's obj.data, or only a list of class names.

data.yaml            path (optional), the folder to which the others are relative; train, val and test, each a
                     folder of images, a .txt with one image per line, or a list of these; names, a list or
                     a mapping from index to name
obj.data             names, train, valid, test: each a file (Darknet; CVAT's "YOLO 1.1")
classes.txt          the class names, one per line (LabelImg, Label Studio); also obj.names (FiftyOne) and
                     _darknet.labels in the folder of a split (Roboflow). The images are in images/, data/,
                     obj_train_data/ or the root; train.txt, val.txt and test.txt list them, or folders called
                     train, val and test hold them. Without either, all of them are one split, called all
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...detections import ClassTable
from ...errors import UserError
from ...yaml_documents import parse_yaml
from ..images import is_image
from ..records import Problem
from .assembly import read_annotation, read_lines
from .lookup import Files, folders_in, path_inside, walk
from .splits import is_usual, meaning
from .values import whole_number

_USUAL_FILES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_NAMES_FILES = ("classes.txt", "labels/classes.txt", "obj.names", "labels.txt")
_IMAGE_FOLDERS = ("images", "data", "obj_train_data")
_NOTHING = ("", "~", "null", "Null", "NULL")  # spellings of an empty value in YAML
# A list of 100,000 names has one megabyte, and parsing it takes two seconds.
_MOST_BYTES = 2 * 2**20


@dataclass(frozen=True)
class Config:
    """The content of the file that describes a data set.

    Attributes:
        file: the file that was read.
        root: the folder of the data set, in which all its files must be.
        base: the folder to which the entries of `splits` are relative.
        splits: the entries of each split, by its name: folders of images, or text files that list images.
        keypoints: True if the file announces keypoints, which then follow the box in each row of labels.
        problems: problems of the file itself.
    """

    file: str
    root: str
    base: str
    classes: ClassTable
    splits: dict[str, list[str]]
    keypoints: bool
    problems: tuple[Problem, ...]


def find_files(root: Path) -> list[Path]:
    """Return the files that may describe the data set `root`; empty if there are none.

    `root` is a folder, or itself such a file. If a file in the folder has a usual name, such as data.yaml,
    only that one is returned.

    Raises:
        UserError: if a *.data file cannot be read.
    """
    if root.is_file():
        return [root] if root.suffix.lower() in (".yaml", ".yml", ".data") else []
    if not root.is_dir():
        return []
    for name in _USUAL_FILES:
        if (root / name).is_file():
            return [root / name]
    found = []
    for file in sorted([*root.glob("*.yaml"), *root.glob("*.yml")]):
        try:
            content = _load_yaml(file)
        except UserError:  # it may belong to another tool, and need not be readable
            continue
        if "names" in content and _entries(content):
            found.append(file)
    if not found:
        found = [file for file in sorted(root.glob("*.data")) if "names" in _load_darknet(file)]
    return found or [
        file for file in [_names_file(root)] if file is not None and _image_place(root) is not None
    ]


def read_config(root: Path) -> Config:
    """Return the content of the file that describes the data set, which must exist (see `find_files`).

    Raises:
        UserError: if several files may describe the data set, or the file or a path in it is unusable.
    """
    files = find_files(root)
    if len(files) > 1:
        raise UserError(
            f"{root} has several files that describe a data set: name one of {', '.join(map(str, files))}."
        )
    file = files[0]
    if file.suffix.lower() in (".yaml", ".yml"):
        return _from_yaml(file)
    return _from_darknet(file) if file.suffix.lower() == ".data" else _from_names(root, file)


def hint(root: Path) -> str:
    """Return the reason why `root` is not a data set in YOLO layout, if a file suggests that it should be.

    Otherwise, return an empty string.
    """
    if not root.is_dir() or find_files(root):
        return ""
    if (classes := _names_file(root)) is not None:
        return f"{classes} may list classes, but there are no pictures: put them into {root}/images"
    for folder, names in walk(root):
        pictures = {os.path.splitext(name)[0] for name in names if is_image(name)}
        labels = os.path.basename(folder) == "labels" or "labels" in Path(folder).relative_to(root).parts
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix == ".txt" and (labels or stem in pictures):
                file = os.path.join(folder, name)
                return (
                    f"{file} may hold labels, but nothing names the classes: list them in {root}/classes.txt"
                )
    return ""


def _from_yaml(file: Path) -> Config:
    content = _load_yaml(file)
    home = str(file.parent)
    problems: list[Problem] = []
    base = _base(content.get("path", ""), file, home, problems)
    entries: dict[str, list[str]] = {}
    for key, value in _entries(content).items():
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(item, str) for item in values):
            raise UserError(f"{key} of {file} must be a path or a list of paths.")
        entries[key] = [item for item in values if item not in _NOTHING]
    return Config(
        file=str(file),
        root=home,
        base=base,
        classes=_classes(content, file, problems),
        splits=_with_test_only_if_there(_by_meaning(entries), file, base, problems),
        keypoints="kpt_shape" in content,
        problems=tuple(problems),
    )


def _entries(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the items whose keys name splits, in any spelling: val, valid, Validation."""
    return {key: value for key, value in content.items() if isinstance(key, str) and is_usual(key)}


def _by_meaning(entries: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Return the entries of each split that has any; those of names such as val and valid are joined."""
    splits: dict[str, list[str]] = {}
    for name, places in entries.items():
        if places:
            splits.setdefault(meaning(name), []).extend(places)
    return splits


def _with_test_only_if_there(
    splits: dict[str, list[str]], file: Path, base: str, problems: list[Problem]
) -> dict[str, list[str]]:
    """Return the splits, but without test if none of its entries exists; a removal is added to `problems`.

    Roboflow writes ../test/images even if there are no test pictures. Test is kept if it is the only split,
    or if one of its entries is an existing path outside the data set; reading test then raises a `UserError`.
    """
    if "test" not in splits or len(splits) == 1:
        return splits
    files = Files(file.parent)
    missing = [entry for entry in splits["test"] if resolve(files, base, entry) is None]
    if len(missing) < len(splits["test"]) or any(_is_outside(files, base, entry) for entry in missing):
        return splits
    message = f"test names {missing[0]}, which is not there: there is no split test"
    problems.append(Problem("missing-split", file.name, message))
    return {name: entries for name, entries in splits.items() if name != "test"}


def _is_outside(files: Files, base: str, entry: str) -> bool:
    return path_inside(files.root, base, entry) is None and os.path.exists(os.path.join(base, entry))


def resolve(files: Files, base: str, entry: str) -> str | None:
    """Return the path of the folder or list to which an entry of a split refers; None if there is none.

    The path is inside the data set of `files`; `base` is the folder to which the entry is relative.
    The first parts of an entry may be folders on its author's machine, and are dropped if necessary: Roboflow
    writes ../train/images into a file next to train/, CVAT writes data/train.txt for train.txt in the root.
    """
    parts = [part for part in entry.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    tried = [entry, "/".join(parts)] if parts else [entry]
    for cut in range(1, len(parts)):
        # Do not shorten an entry to a folder such as images, which could belong to any split.
        if cut < len(parts) - 1 or "." in parts[-1] or is_usual(parts[-1]):
            tried.append("/".join(parts[cut:]))
    for text in tried:
        found = files.folder(base, text) or files.find(base, text)
        if found is not None:
            return found
    return None


def _load_yaml(file: Path) -> dict[str, Any]:
    data = read_annotation(str(file), _MOST_BYTES, "the description of a data set")
    try:
        content = parse_yaml(data, typed=False)
    except ValueError as error:
        raise UserError(f"{file} is not valid YAML ({error}): fix it.") from error
    if not isinstance(content, dict):
        raise UserError(
            f"{file} does not describe a YOLO data set: it should hold names and train, val or test."
        )
    return content


def _base(value: Any, file: Path, home: str, problems: list[Problem]) -> str:
    """Return the folder to which `value`, the value of the key `path`, refers, or `home`, the file's folder.

    The result is `home` if no folder is stated, or if the folder does not exist, often because it is on the
    author's machine. A folder that does not exist is added to `problems`.

    Raises:
        UserError: if `path` is not a string, or names an existing folder outside `home`.
    """
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
            raise UserError(f"class {key} in names of {file} must be a string, not a {type(name).__name__}.")
        table[int(key)] = name
    count = content.get("nc", str(len(table)))
    if whole_number(count) != len(table):
        message = f"nc is {count!s:.40}, but there are {len(table)} names: names count"
        problems.append(Problem("class-count", file.name, message))
    ids = sorted(table)
    return ClassTable(tuple(table[index] for index in ids), tuple(ids))


# --- without YAML -----------------------------------------------------------------------------------------


def _load_darknet(file: Path) -> dict[str, str]:
    lines = read_lines(file) if file.is_file() else []
    pairs = (line.partition("=") for line in lines if "=" in line)
    return {key.strip().lower(): value.strip() for key, _, value in pairs}


def _from_darknet(file: Path) -> Config:
    content = _load_darknet(file)
    home = str(file.parent)
    names = resolve(Files(home), home, content.get("names", ""))
    if names is None or not os.path.isfile(names):
        raise UserError(
            f"{file} gives {content.get('names', 'nothing')} as names, but there is no such file in {home}: "
            "put the list of class names there."
        )
    splits = _by_meaning({key: [value] for key, value in _entries(content).items() if value})
    return Config(str(file), home, home, _class_list(Path(names)), splits, False, ())


def _names_file(root: Path) -> Path | None:
    usual = [root / name for name in _NAMES_FILES]
    return next(filter(Path.is_file, [*usual, *sorted(root.glob("*/_darknet.labels"))]), None)


def _image_place(root: Path) -> Path | None:
    """Return the folder with the images of a data set that has only a list of class names.

    Return None if no folder holds images.
    """
    for folder in (*(root / name for name in _IMAGE_FOLDERS), root):
        inside = [folder, *map(Path, folders_in(folder, is_usual))]
        places = [*inside, *(part / "images" for part in inside)]
        if any(_holds_images(place) for place in places):
            return folder
    return None


def _holds_images(folder: Path) -> bool:
    try:
        return any(is_image(name) for name in os.listdir(folder))
    except OSError:
        return False


def _from_names(root: Path, file: Path) -> Config:
    place = _image_place(root)
    lists = [
        name for name in sorted(os.listdir(root)) if name.lower().endswith(".txt") and is_usual(name[:-4])
    ]
    folders = [] if place is None else folders_in(place, is_usual)
    if lists:
        splits = _by_meaning({name[:-4]: [name] for name in lists})
    elif folders:
        splits = _by_meaning({os.path.basename(path): [os.path.relpath(path, root)] for path in folders})
    else:
        splits = {"all": [os.path.relpath(place or root, root)]}
    return Config(str(file), str(root), str(root), _class_list(file), splits, False, ())


def _class_list(file: Path) -> ClassTable:
    names = [line.strip() for line in read_lines(file)]
    while names and not names[-1]:
        names.pop()
    if not names:
        raise UserError(f"{file} is empty: it should list the class names, one per line.")
    return ClassTable.from_names(names)

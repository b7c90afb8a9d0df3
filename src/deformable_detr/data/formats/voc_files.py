"""Locations of the files of a Pascal VOC data set: splits, annotations, pictures.

    Annotations/NAME.xml  JPEGImages/NAME.jpg  ImageSets/Main/S.txt     S is the split, one NAME per line

These are in the root, in VOC2007/ (or another year) below it, or in VOCdevkit/VOC2007/. NAME may contain
folders and spaces. Lists of single classes (`cat_train.txt`, with a second column of -1, 0, 1) are not
splits; if there are no other lists, all lists of train form the split train, and so on (VoTT).

Without lists, folders called train, valid, … with XML files are splits (Roboflow); without these, all XML
files form one split, called all. XML files are in Annotations/ or labels/, or next to their pictures;
pictures are in JPEGImages/, images/ or data/ (labelme, Label Studio, LabelImg, FiftyOne).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...errors import UserError
from ..images import is_image
from .assembly import read_lines, relative
from .lookup import Files, files_in, folders_in, loosened, walk
from .splits import is_usual, meaning

LOOKED_FOR = (
    "Annotations/*.xml with ImageSets/Main/*.txt and JPEGImages, or *.xml files next to pictures (Pascal VOC)"
)

_XML_FOLDERS = ("annotations", "labels")  # in upper or lower case
_PICTURE_FOLDERS = ("jpegimages", "images", "data")
_PROBED_FILES = 3
_PROBED_LINES = 20
_CLASS_ROW = re.compile(r"(.*\S)\s+(-1|0|1)")


@dataclass(frozen=True)
class Listed:
    """A picture of a split.

    `name` is the path of the XML file below the folder of annotations, without the suffix. `file` is the path
    of the XML file, which need not exist; None if that would be outside the data set. `where` is the location
    that lists the picture: the file and line of a list, or the XML file.
    """

    name: str
    file: str | None
    where: str


@dataclass(frozen=True)
class Home:
    """The folders and splits of a data set.

    Attributes:
        root: the folder with all files.
        source: the folder with the annotations; it is `root` if several splits have a folder each.
        pictures: the folders with the images.
        splits: the pictures of each split, by its name.
    """

    root: Path
    source: Path
    pictures: tuple[str, ...]
    splits: dict[str, list[Listed]]


def is_there(root: Path) -> bool:
    return bool(_homes(root))


def find_home(root: Path) -> Home:
    """Return the folders and splits of the data set, which must exist (see `is_there`).

    Raises:
        UserError: if there are several data sets, a list cannot be read, or no folder of pictures exists.
    """
    homes = _homes(root)
    if len(homes) > 1:
        raise UserError(
            f"{root} holds several Pascal VOC data sets: name one of {', '.join(map(str, homes))}."
        )
    home = homes[0]
    lists = _lists(home)
    if not lists:
        return _unlisted(home)
    source = Path(_annotations(home)[0])
    pictures = folders_in(home, lambda name: name.lower() in _PICTURE_FOLDERS, "JPEGImages")
    if not pictures:
        raise UserError(f"{home / 'JPEGImages'} cannot be listed: put the images of the data set there.")
    files = Files(home)
    splits = {name: _listed(lines, source, files) for name, lines in lists.items()}
    return Home(home, source, tuple(pictures), splits)


def _homes(root: Path) -> list[Path]:
    """Return the folders with Annotations and ImageSets: the root, or folders such as VOC2007 below it.

    Folders such as VOC2007 may also be in the folder VOCdevkit of the root. If there are none, return the
    root if it is a data set without lists, and otherwise an empty list.
    """
    if not root.is_dir():
        return []
    candidates = [root] if _is_home(root) else [*root.glob("VOC[0-9]*"), *root.glob("VOCdevkit/VOC[0-9]*")]
    homes = sorted(folder for folder in candidates if _is_home(folder))
    return homes or ([root] if _unlisted_parts(root) else [])


def _is_home(folder: Path) -> bool:
    return bool(_annotations(folder)) and bool(files_in(folder / "ImageSets" / "Main", ".txt"))


def _annotations(home: Path) -> list[str]:
    return folders_in(home, lambda name: name.lower() == "annotations", "Annotations")


# --- lists ------------------------------------------------------------------------------------------------


def _lists(home: Path) -> dict[str, list[tuple[str, str]]]:
    """Return (where, name) of each picture in the lists of each split; empty if there are no lists.

    Lists of single classes are only used if there are no others.
    """
    plain: dict[str, list[tuple[str, str]]] = {}
    of_classes: dict[str, dict[str, str]] = {}
    for file in files_in(home / "ImageSets" / "Main", ".txt"):
        lines = list(_lines(file, home))
        if not _is_class_list(lines, home):
            plain[file.stem] = [(where, _name(text)) for where, text in lines]
            continue
        suffix = file.stem.rpartition("_")[2]
        split = suffix if is_usual(suffix) or meaning(suffix) == "trainval" else "all"
        names = of_classes.setdefault(split, {})
        for where, text in lines:
            match = _CLASS_ROW.fullmatch(text)
            if match is not None:
                names.setdefault(_name(match[1]), where)
    if plain:
        return plain
    return {split: [(where, name) for name, where in names.items()] for split, names in of_classes.items()}


def _lines(file: Path, home: Path) -> Iterator[tuple[str, str]]:
    called = relative(str(file), str(home))
    for line, text in enumerate(read_lines(file), start=1):
        if text.strip():
            yield f"{called}:{line}", text.strip()


def _is_class_list(lines: list[tuple[str, str]], home: Path) -> bool:
    """Return True if there are lines, and the first 20 all have the second column of a class list (-1, 0, 1).

    If one of these lines as a whole is the name of an existing XML file, the result is False.
    """
    probed = [text for _, text in lines[:_PROBED_LINES]]
    folder = Path(next(iter(_annotations(home))))
    return bool(probed) and all(
        _CLASS_ROW.fullmatch(text) and not os.path.exists(folder / f"{text}.xml") for text in probed
    )


def _name(text: str) -> str:
    """Return a name without the quotes that Datumaro (CVAT) puts around names with spaces."""
    return text[1:-1] if len(text) > 2 and text[0] == text[-1] == '"' else text


def _listed(lines: list[tuple[str, str]], source: Path, files: Files) -> list[Listed]:
    found = []
    for where, name in lines:
        stem, _ = os.path.splitext(name)
        file = files.find(str(source), f"{name}.xml")
        if file is None and is_image(name):  # VoTT lists a.jpg for a.xml
            file = files.find(str(source), f"{stem}.xml")
            name = stem if file is not None else name
        found.append(Listed(name, file or files.expected(str(source), f"{name}.xml"), where))
    return found


# --- without lists ----------------------------------------------------------------------------------------


def _unlisted(root: Path) -> Home:
    parts = _unlisted_parts(root)
    pictures = [folder for source in parts.values() for folder in _pictures_near(source)]
    splits: dict[str, list[Listed]] = {}
    for name, source in parts.items():
        listed = []
        for folder, names in walk(source):
            for file in names:
                stem, suffix = os.path.splitext(os.path.join(folder, file))
                if suffix.lower() == ".xml":
                    where = relative(stem + suffix, str(root))
                    listed.append(Listed(relative(stem, str(source)), stem + suffix, where))
        splits[name] = listed
    return Home(
        root, root if len(parts) > 1 else next(iter(parts.values())), tuple(dict.fromkeys(pictures)), splits
    )


def _unlisted_parts(root: Path) -> dict[str, Path]:
    """Return the folders of XML files by split, for a data set without lists; empty if there are none."""
    own = _xml_folder(root)
    if own is not None and own != root:
        named = folders_in(own, is_usual)
        return {Path(folder).name: Path(folder) for folder in named} or {"all": own}
    named = folders_in(root, is_usual)
    found = {Path(folder).name: _xml_folder(Path(folder)) for folder in named}
    parts = {name: folder for name, folder in found.items() if folder is not None}
    return parts or ({} if own is None else {"all": own})


def _xml_folder(folder: Path) -> Path | None:
    inner = [Path(name) for name in folders_in(folder, lambda name: name.lower() in _XML_FOLDERS)]
    for candidate in (*inner, folder):
        deeper = [Path(name) for name in folders_in(candidate, is_usual)] if candidate != folder else []
        if any(_holds_annotations(place) for place in (candidate, *deeper)):
            return candidate
    return None


def _holds_annotations(folder: Path) -> bool:
    """Return True if one of the first three XML files in the folder contains the element <annotation>.

    Only the first 4096 bytes of a file are read. Files without this element are from other programs.
    """
    for file in files_in(folder, ".xml")[:_PROBED_FILES]:
        try:
            with file.open("rb") as opened:
                if b"<annotation" in opened.read(4096).replace(b"\0", b""):
                    return True
        except OSError:
            continue
    return False


def _pictures_near(source: Path) -> Iterator[str]:
    """Yield the folders that may hold the pictures of a folder of XML files."""
    for near in (source.parent, source.parent.parent):
        for folder in folders_in(near, lambda name: name.lower() in _PICTURE_FOLDERS):
            yield from folders_in(folder, lambda name: meaning(name) == meaning(source.name))
            yield folder
        if source.name.lower() in _XML_FOLDERS or is_usual(source.name):
            break
    yield str(source)
    if source.name.lower() in _XML_FOLDERS:
        yield str(source.parent)


# --- pictures ---------------------------------------------------------------------------------------------


class Pictures:
    """The pictures of a data set, indexed by their names without suffix, with and without their folders.

    `called`: the folders of pictures, as messages name them.
    """

    def __init__(self, home: Home) -> None:
        self.called = " or ".join(relative(folder, str(home.root)) for folder in home.pictures)
        self._tops: dict[str, str] = {}
        self._by_name: dict[str, dict[str, None]] = {}
        for top in home.pictures:
            for folder, names in walk(top):
                for name in names:
                    if is_image(name):
                        self._add(os.path.join(folder, name), top)

    def name(self, path: str) -> str:
        """Return the path of a picture relative to its folder of pictures."""
        return relative(path, self._tops[path])

    def of(self, name: str, stated: str) -> str | None:
        """Return the path of the picture with the XML file's `name` or, failing that, with the name `stated`.

        `stated` is the content of <filename>. If several folders of pictures have the name, the first folder
        counts. Return None if there is no such picture, or if several in that folder match.
        """
        stated = stated.replace("\\", "/")
        wanted = (name, os.path.splitext(stated)[0], os.path.splitext(os.path.basename(stated))[0])
        for key in (key for one in wanted for key in (one, loosened(one))):
            found = list(self._by_name.get(key, ()))
            # If several folders of pictures have the name, the first is used: JPEGImages before images.
            near = [path for path in found if self._tops[path] == self._tops[found[0]]]
            named = [path for path in near if os.path.basename(path) == os.path.basename(stated)]
            if len({os.path.splitext(path)[0] for path in named or near}) == 1:
                return (named or near)[0]
        return None

    def _add(self, path: str, top: str) -> None:
        if path in self._tops:
            return
        self._tops[path] = top
        for name in (relative(path, top), os.path.basename(path)):
            stem = os.path.splitext(name)[0]
            for key in (stem, loosened(stem)):
                self._by_name.setdefault(key, {}).setdefault(path)

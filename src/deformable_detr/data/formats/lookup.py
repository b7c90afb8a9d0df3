"""Finding the files that annotations name, even if a name is spelled differently on the disk.

Annotation files are written on one machine and read on another. So a name may contain its author's folders
(`data/images/train/a.jpg`, `C:\\images\\a.jpg`), be composed differently (macOS decomposes accents), or
differ in case. A name is accepted if it can mean only one file. Files outside the data set are not found.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

_PROBED_NAMES = 20
_URL = re.compile(r"[\w+.-]+://[^/?]*/([^?]*).*|.*\?d=(.*)", re.DOTALL)  # ?d=PATH is Label Studio's
_MACOS = "._"  # on other systems' disks, ._a.jpg contains what macOS knows about a.jpg


def path_inside(root: str, *parts: str) -> str | None:
    """Return the joined absolute path; None if it leads out of `root` or is not a valid path.

    `..` or an absolute path among the `parts` can lead out. Only the text is checked: with links, the owner
    of a data set may keep images elsewhere.
    """
    root = os.path.abspath(root)
    path = os.path.abspath(os.path.join(root, *parts)) if all("\0" not in part for part in parts) else ""
    return path if path == root or path.startswith(os.path.join(root, "")) else None


def walk(
    top: str | Path, enter: Callable[[str], bool] = lambda folder: True
) -> Iterator[tuple[str, list[str]]]:
    """Yield the path of `top` and of each folder below it, each with the sorted names of its files.

    Links to folders are followed, except links to a folder through which the walk has come to the link, or to
    one that contains such a folder, because following those would never end. Only folders for whose path
    `enter` returns True are entered. macOS's ._NAME files are left out. If `top` does not exist, nothing is
    yielded. The folders in a folder are visited in sorted order.
    """
    for folder, folders, files in os.walk(top, followlinks=True):
        inside = (os.path.join(folder, name) for name in sorted(folders))
        folders[:] = [os.path.basename(one) for one in inside if not _leads_back(one, top) and enter(one)]
        yield folder, sorted(name for name in files if not name.startswith(_MACOS))


def _leads_back(folder: str, top: str | Path) -> bool:
    """Return whether `folder` is a link to one of the folders that contain it on the way from `top`, or to a
    folder that contains one of those.
    """
    if not os.path.islink(folder):
        return False
    place = os.path.realpath(folder)
    below_top = Path(folder).relative_to(top)
    passed = [os.path.realpath(Path(top, parent)) for parent in below_top.parents]
    return any(one == place or one.startswith(os.path.join(place, "")) for one in passed)


def folders_in(parent: str | Path, meant: Callable[[str], object], first: str = "") -> list[str]:
    """Return the sorted paths of the folders in `parent` whose names `meant` accepts.

    The folder called `first` comes first. If `parent` cannot be listed, the result is empty.
    """
    try:
        with os.scandir(parent) as entries:
            names = [entry.name for entry in entries if meant(entry.name) and entry.is_dir()]
    except OSError:
        return []
    return [os.path.join(parent, name) for name in sorted(names, key=lambda name: (name != first, name))]


def files_in(folder: Path, suffix: str) -> list[Path]:
    """Return the sorted files in `folder` whose names end with `suffix`, without macOS's ._NAME files."""
    return sorted(file for file in folder.glob(f"*{suffix}") if not file.name.startswith(_MACOS))


@dataclass
class _Folder:
    """A listed folder: the names of its files and folders on the disk.

    `loosely` maps the `loosened` form of a name to the names that have it; it is filled when it is needed.
    """

    files: set[str]
    folders: set[str]
    loosely: dict[str, list[str]] = field(default_factory=dict)


class Files:
    """The files of a data set.

    Each folder is listed once, because one query per image (118,287 in COCO's train2017) takes a long time,
    especially on network disks. `respelt`: (name as annotated, path on the disk below the root) of each file
    that was found under another spelling.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = os.path.abspath(root)
        self.respelt: list[tuple[str, str]] = []
        self._listed: dict[str, _Folder] = {}
        self._parents: dict[tuple[str, str], str | None] = {}

    def probe(self) -> Files:
        """Return a copy that shares the listed folders, but records respelt names separately."""
        other = Files(self.root)
        other._listed, other._parents = self._listed, self._parents
        return other

    def find(self, base: str, name: str) -> str | None:
        """Return the path of the file `name` below the folder `base`, as it is spelled on the disk.

        A file with another spelling is added to `respelt`. Return None if there is no such file, several
        files match, or the name leads out of the root.
        """
        for text in _spellings(name):
            path = self._path(base, text)
            if path is None:
                continue
            found = self._exact(path) or self._loose(path)
            if found is not None:
                if text != name or found != path:
                    self.respelt.append((name, os.path.relpath(found, self.root)))
                return found
        return None

    def expected(self, base: str, name: str) -> str | None:
        """Return the path at which the file `name` is expected; None if that is outside the root."""
        return path_inside(self.root, base, _spellings(name)[-1])

    def folder(self, base: str, name: str) -> str | None:
        """Return the path of the folder `name` below `base`, as it is spelled on the disk.

        Return None if there is no such folder, several folders match, or the name leads out of the root.
        """
        paths = (path_inside(self.root, base, text) for text in _spellings(name))
        found = (self._folder(path) for path in paths if path is not None)
        return next((path for path in found if path is not None), None)

    def _path(self, base: str, text: str) -> str | None:
        folder, name = os.path.split(text)
        if name in ("", ".", "..") or "\0" in name:
            return None
        if (base, folder) not in self._parents:
            self._parents[base, folder] = path_inside(self.root, base, folder)
        parent = self._parents[base, folder]
        return None if parent is None else os.path.join(parent, name)

    def _exact(self, path: str) -> str | None:
        folder, name = os.path.split(path)
        # A file that is not in the listing may exist all the same, because some file systems ignore case.
        return path if name in self._of(folder).files or os.path.isfile(path) else None

    def _loose(self, path: str) -> str | None:
        parent, name = os.path.split(path)
        folder = self._folder(parent)
        if folder is None:
            return None
        match = _one(self._of(folder), name, self._of(folder).files)
        return None if match is None else os.path.join(folder, match)

    def _folder(self, path: str) -> str | None:
        """Return the path of a folder inside the root as it is spelled on the disk.

        Return None if there is no such folder, or several folders match.
        """
        if path == self.root or os.path.isdir(path):
            return path
        if not path.startswith(os.path.join(self.root, "")):
            return None
        found = self.root
        for name in os.path.relpath(path, self.root).split(os.sep):
            listed = self._of(found)
            match = name if os.path.isdir(os.path.join(found, name)) else _one(listed, name, listed.folders)
            if match is None:
                return None
            found = os.path.join(found, match)
        return found

    def _of(self, folder: str) -> _Folder:
        if folder not in self._listed:
            self._listed[folder] = _list(folder)
        return self._listed[folder]


class NamedFiles:
    """The files that a list of names refers to.

    The files are in one of several folders. The first parts of every name may be folders on the machine of
    the list's author, and are then ignored. The folder and the number of ignored parts are those with which
    most files are found for a sample of the names. If parts are ignored and two names then refer to the same
    file, neither is used.

    `paths`: the path of each name whose file was found.
    """

    def __init__(self, files: Files, folders: Sequence[str], names: Sequence[str]) -> None:
        self._files = files
        self._folders = folders
        self._base, self._cut = self._best(names)
        found = {name: self._find(name) for name in dict.fromkeys(names)}
        shared = Counter(path for path in found.values() if path is not None)
        self.paths = {
            name: path
            for name, path in found.items()
            if path is not None and (shared[path] == 1 or not self._cut)
        }

    def missing(self, name: str) -> str:
        """Return the path below the root at which a file that was not found is expected.

        The path has slashes. It is empty if it would be outside the root.
        """
        path = self._files.expected(self._base, name)
        return "" if path is None else Path(os.path.relpath(path, self._files.root)).as_posix()

    def _find(self, name: str) -> str | None:
        return self._files.find(self._base, name) or (
            self._files.find(self._base, _without_parts(name, self._cut)) if self._cut else None
        )

    def _best(self, names: Sequence[str]) -> tuple[str, int]:
        probed = list(names)[:: max(1, len(names) // _PROBED_NAMES)]
        depth = max((len(_parts(name)) for name in probed), default=1)
        best, most = (self._folders[0], 0), 0
        for cut in range(depth):
            for folder in self._folders:
                probe = self._files.probe()
                texts = [_without_parts(name, cut) if cut else name for name in probed]
                hits = len({path for text in texts if text and (path := probe.find(folder, text))})
                if hits > most:
                    best, most = (folder, cut), hits
            if most == len(set(probed)):
                break
        return best


def _spellings(name: str) -> list[str]:
    """Return the spellings of a path to try.

    The first is the path as written. If it has backslashes (Windows), the second has slashes and no drive.
    Otherwise, if it is a URL or has escapes such as %20, the second is the path without the host and the
    escapes.
    """
    if "\\" in name:
        return [name, re.sub(r"^[A-Za-z]:", "", name).replace("\\", "/")]
    url = _URL.fullmatch(name)
    path = name if url is None else url[1] or url[2] or ""
    return [name] if url is None and "%" not in name else [name, unquote(path)]


def _parts(name: str) -> list[str]:
    return [part for part in _spellings(name)[-1].split("/") if part not in ("", ".", "..")]


def _without_parts(name: str, count: int) -> str:
    return "/".join(_parts(name)[count:])


def loosened(name: str) -> str:
    """Return a form that is equal for names that differ only in case or in their Unicode normalisation.

    For example, é can be one character (NFC), or e with a combining accent (NFD), as on macOS.
    """
    return unicodedata.normalize("NFC", name).casefold()


def _one(folder: _Folder, name: str, among: set[str]) -> str | None:
    """Return the only entry of `among` that equals `name` after Unicode normalisation.

    If there is not exactly one, ignore differences in case, too. Return None if there is still not exactly
    one.
    """
    if not folder.loosely:
        for entry in folder.files | folder.folders:
            folder.loosely.setdefault(loosened(entry), []).append(entry)
    candidates = [entry for entry in folder.loosely.get(loosened(name), []) if entry in among]
    composed = unicodedata.normalize("NFC", name)
    same = [entry for entry in candidates if unicodedata.normalize("NFC", entry) == composed]
    for found in (same, candidates):
        if len(found) == 1:
            return found[0]
    return None


def _list(folder: str) -> _Folder:
    listed = _Folder(set(), set())
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_file():
                    listed.files.add(entry.name)
                elif entry.is_dir():
                    listed.folders.add(entry.name)
    except (OSError, ValueError):  # no such folder; a name that the file system cannot spell
        return listed
    return listed

"""The sources that a user names for a prediction.

A source is an image file, a video, a folder, a pattern, a camera, or `demo` for the pictures that come with
the bundled model.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from ..checkpoint.names import DEMO, demo_pictures
from ..data.formats.lookup import walk
from ..data.images import IMAGE_SUFFIXES
from ..errors import UserError
from .outputs import MADE_BY, PREDICTION_REPORT_FILE, PREDICTIONS_FILE

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ogv"}
    | {".mts", ".m2ts", ".mjpeg", ".ts", ".m2v", ".mpe", ".vob", ".asf", ".qt"}
)
_TRANSPORT_STREAM = ".ts"  # also the suffix of TypeScript files
_SYNC = b"G"  # the first byte of a transport stream's packets
_HOUSEKEEPING = frozenset({"thumbs.db", "desktop.ini"})
_SHOWN = 3
_CAMERA = re.compile(r"webcam:(\d{1,5})")


@dataclass(frozen=True)
class Camera:
    """A camera of this machine, which a user names by its index, counted from 0, as in `webcam:0`."""

    index: int

    def __str__(self) -> str:
        return f"webcam:{self.index}"


@dataclass(frozen=True)
class Sources:
    """The inputs that were found, without repeats, in the order in which the sources name them.

    Attributes:
        left_out: folders with results of `predict`, whose annotated pictures are not inputs.
        passed_over: files that were found in folders, but do not have the name of a picture or video.
    """

    images: tuple[Path, ...]
    videos: tuple[Path | Camera, ...]
    left_out: tuple[Path, ...]
    passed_over: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return len(self.images) + len(self.videos)


def find_sources(sources: str | Path | Sequence[str | Path], output: Path | None = None) -> Sources:
    """Return the files and cameras that `sources` name.

    Folders are searched with their subfolders, and the files of a folder are sorted by path.

    Args:
        output: the folder for results, if any. It is left out when folders and patterns are searched, as is
            any other folder to which `predict` has written. A folder that is itself a source is searched.

    Raises:
        UserError: if nothing is found for a source.
    """
    search = _Search(output)
    inputs: dict[Path | Camera, None] = {}
    for source in [sources] if isinstance(sources, str | Path) else sources:
        found = list(search(source))
        if not found:
            only = f" but results of an earlier predict in {search.left_out[-1]}" if search.left_out else ""
            if search.passed_over:
                only += f" but {names_shown(search.passed_over)}"
            raise UserError(
                f"{source}: no image or video there{only}; name image or video files, a folder that contains "
                "some, a pattern such as 'photos/*.jpg', or webcam:0."
            )
        inputs.update(dict.fromkeys(found))
    videos = tuple(source for source in inputs if isinstance(source, Camera) or is_video(source))
    images = tuple(source for source in inputs if isinstance(source, Path) and not is_video(source))
    passed_over = tuple(dict.fromkeys(search.passed_over))
    return Sources(images, videos, tuple(dict.fromkeys(search.left_out)), passed_over)


def find_pictures(sources: str | Path | Sequence[str | Path], output: Path | None = None) -> list[Path]:
    """Return the pictures that `sources` name, by the rules of `find_sources`.

    Raises:
        UserError: if nothing is found for a source, or if a video or camera is found.
    """
    inputs = find_sources(sources, output)
    if inputs.videos:
        raise UserError(f"{inputs.videos[0]} is not a picture: name image files, folders or patterns.")
    return list(inputs.images)


def as_source(source: str | Path) -> Path | Camera:
    """Return a `Camera` if `source` names one (`webcam:0`), else a path."""
    camera = _CAMERA.fullmatch(str(source))
    return Camera(int(camera[1])) if camera else Path(source)


def is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def names_shown(files: Sequence[Path]) -> str:
    """Return the names of the first three files and the number of the others, if any (`and 5 more`)."""
    more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
    return ", ".join(file.name for file in files[:_SHOWN]) + more


class _Search:
    """A search of folders and patterns, which records the folders and files that it leaves out."""

    def __init__(self, output: Path | None):
        self.output = None if output is None else output.resolve()
        self.left_out: list[Path] = []
        self.passed_over: list[Path] = []

    def __call__(self, source: str | Path) -> Iterator[Path | Camera]:
        path = as_source(source)
        if isinstance(path, Camera):
            yield path
        elif path.is_dir():
            yield from self._folder(path)
        elif path.exists():
            yield path
        elif str(source) == DEMO:
            yield from demo_pictures()
        else:
            yield from self._matches(str(source))

    def _folder(self, top: Path) -> Iterator[Path]:
        def enter(folder: str) -> bool:
            if self._holds_results(Path(folder), top):
                self.left_out.append(Path(folder))
                return False
            return True

        files = [Path(folder, name) for folder, names in walk(top, enter) for name in names]
        for file in sorted(files):
            if _is_media(file):
                yield file
            elif file.is_file() and not file.name.startswith(".") and file.name.lower() not in _HOUSEKEEPING:
                self.passed_over.append(file)

    def _matches(self, pattern: str) -> Iterator[Path]:
        top = fixed_folder(pattern)
        for path in map(Path, sorted(glob.glob(pattern, recursive=True))):
            if not path.is_file():
                continue
            if self._holds_results(path.parent, top):
                self.left_out.append(path.parent)
            else:
                yield path

    def _holds_results(self, folder: Path, top: Path) -> bool:
        """Return True if `folder`, which a search of the folder `top` has found, holds results of `predict`.

        The output folder counts as such a folder, even after a run that was killed, unless it is `top`.
        """
        if folder.resolve() == self.output != top.resolve():
            return True
        return holds_drawings(folder)


def holds_drawings(folder: Path) -> bool:
    """Return True if this folder contains predictions.json and a report.json that `predict` has written."""
    report = folder / PREDICTION_REPORT_FILE
    if not (report.is_file() and (folder / PREDICTIONS_FILE).is_file()):
        return False
    try:
        content = json.loads(report.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("made_by") == MADE_BY


def _is_media(file: Path) -> bool:
    suffix = file.suffix.lower()
    # A link that leads nowhere is an input, so that it is reported as unreadable.
    if suffix not in IMAGE_SUFFIXES | VIDEO_SUFFIXES or (file.exists() and not file.is_file()):
        return False
    if suffix != _TRANSPORT_STREAM:
        return True
    try:
        with file.open("rb") as opened:
            return opened.read(1) == _SYNC
    except OSError:
        return True  # its reader will report why it cannot be read


def fixed_folder(pattern: str) -> Path:
    """Return the folder in which the search for a pattern starts: the folders before the first wildcard."""
    return Path(*takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts[:-1]))

"""List the pictures of sources one after the other, so that a long list is never held in memory.

A source is a picture, a folder, a pattern, a text file (.txt, .lst) with a path or URL on each line, a
Parquet file with a column `path` or `image` (the bytes of image files), or a URL of one of these (`s3://…`,
anything that fsspec knows). `demo` means the pictures that come with the bundled model. Folders are searched
with their subfolders.
"""

from __future__ import annotations

import glob
import os
import posixpath
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..checkpoint.names import DEMO, demo_pictures
from ..data.formats.lookup import walk
from ..data.images import is_image
from ..data.remote import is_url, open_file_system
from ..errors import UserError
from ..files import check_readable
from ..prediction.sources import Camera, as_source, fixed_folder, holds_drawings, is_video
from ..words import one_line
from .libraries import library

LISTS, TABLE = (".txt", ".lst"), ".parquet"
MEMORY = "memory://"  # fsspec's file system in the memory of one process
_ROWS = 10_000  # rows that are read from a table at a time


class Picture(NamedTuple):
    """A picture of a source.

    Attributes:
        path: the absolute path or the URL of the picture, or its name if it is a row of a table.
        root: the folder that was searched; empty if a list or a user named the picture itself.
        table: the Parquet file that contains the picture's bytes; empty if `path` locates the picture.
        row: the number of the row in `table`, from 0.
    """

    path: str
    root: str = ""
    table: str = ""
    row: int = 0

    @property
    def place(self) -> tuple[str, int]:
        """The file or URL, and the row in it, from which the picture is read; it identifies the picture."""
        return (self.table, self.row) if self.table else (self.path, 0)


def absolute(source: str | Path) -> str:
    """Return a source in a form that is valid in processes with other working folders.

    Paths become absolute. URLs do not change, nor does `demo`, unless a file or folder has this name.
    """
    text = str(source)
    return text if is_url(text) or (text == DEMO and not Path(DEMO).exists()) else os.path.abspath(text)


def check_sources(sources: Sequence[str]) -> None:
    """Raise a `UserError` if a local source does not exist, or if a source is a video or a camera.

    URLs are not opened, and patterns need not match anything.
    """
    for source in sources:
        if is_video(Path(source)) or isinstance(as_source(source), Camera):
            raise UserError(
                f"{source} is a video or a camera, but tables are for pictures: leave it out, or leave out "
                "--format parquet."
            )
        if not (is_url(source) or source == DEMO or os.path.exists(source) or glob.has_magic(source)):
            raise UserError(
                f"{source}: there is no such file or folder; name pictures, folders, patterns, a .txt or "
                ".parquet list, or a URL such as s3://bucket/folder."
            )


def list_pictures(sources: Sequence[str]) -> Iterator[Picture]:
    """Yield the pictures of all sources, in the order of the sources; a picture may occur more than once.

    Raises:
        UserError: if a source contains no picture or cannot be listed, or if it needs a library that is not
            installed.
    """
    for source in sources:
        number = 0
        for picture in _list_url(source) if is_url(source) else _list_local(source):
            number += 1
            yield picture
        if not number:
            raise UserError(
                f"{source} contains no picture: name pictures, folders, patterns, a list or a URL "
                "that has some."
            )


def _list_local(source: str) -> Iterator[Picture]:
    if os.path.isdir(source):
        for folder, names in walk(source, lambda folder: not holds_drawings(Path(folder))):
            yield from (Picture(os.path.join(folder, name), source) for name in names if is_image(name))
    elif os.path.exists(source):
        yield from _list_file(source)
    elif source == DEMO:
        yield from (Picture(str(path)) for path in demo_pictures())
    else:
        root = str(fixed_folder(source))
        paths = sorted(glob.iglob(source, recursive=True))
        yield from (Picture(path, root) for path in paths if os.path.isfile(path))


def _list_url(source: str) -> Iterator[Picture]:
    """Yield the pictures at a URL of a picture, a list, a folder or a pattern.

    If the URL is a folder, only the names of one subfolder are in memory at a time.

    Raises:
        UserError: if the URL cannot be opened or listed, or a list is damaged.
    """
    try:
        files, path = open_file_system(source, keeps_listings=False)
        if glob.has_magic(path):
            root = files.unstrip_protocol(posixpath.dirname(path.split("*")[0]))
            yield from (Picture(files.unstrip_protocol(found), root) for found in sorted(files.glob(path)))
        elif files.isfile(path):
            yield from _list_file(source)
        else:
            root = source.rstrip("/")
            for folder, _, names in files.walk(path, on_error="raise"):
                for name in sorted(filter(is_image, names)):
                    yield Picture(files.unstrip_protocol(f"{folder.rstrip('/')}/{name}"), root)
    except (UserError, GeneratorExit):
        raise
    except Exception as error:  # every file system has its own exceptions
        raise UserError(
            f"{source} cannot be listed ({_reason(error)}): check the URL and the access."
        ) from error


def _list_file(file: str) -> Iterator[Picture]:
    suffix = posixpath.splitext(file)[1].lower()
    if suffix in (*LISTS, TABLE) and not is_url(file):
        check_readable(Path(file))
    if suffix in LISTS:
        yield from _list_lines(file)
    elif suffix == TABLE:
        yield from _list_rows(file)
    else:
        yield Picture(file)


def _list_lines(file: str) -> Iterator[Picture]:
    with open_binary(file) as opened:
        for number, line in enumerate(opened, start=1):
            try:
                name = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise UserError(f"{file}, line {number} is not UTF-8: convert the list.") from error
            if name:
                yield Picture(_relative_to(file, name))


def _list_rows(file: str) -> Iterator[Picture]:
    parquet = library("pyarrow.parquet")
    with open_binary(file) as opened:
        try:
            yield from _rows_of(parquet.ParquetFile(opened), file)
        except UserError:
            raise
        except Exception as error:  # the table may be damaged anywhere
            raise UserError(f"{file} cannot be read as Parquet ({_reason(error)}).") from error


def _rows_of(table: Any, file: str) -> Iterator[Picture]:
    names = table.schema_arrow.names
    if "image" not in names and "path" not in names:
        raise UserError(f"{file} has no column path or image, only {', '.join(names)}: rename one.")
    if "path" not in names:
        yield from (Picture(f"{file}#{row}", "", file, row) for row in range(table.metadata.num_rows))
        return
    row = 0
    for batch in table.iter_batches(_ROWS, columns=["path"]):
        for name in batch.column(0).to_pylist():
            if not isinstance(name, str):
                raise UserError(f"{file}, row {row}: the path is {name!r}, but it must be a string.")
            yield Picture(name, "", file, row) if "image" in names else Picture(_relative_to(file, name))
            row += 1


def _relative_to(file: str, name: str) -> str:
    """Return the path or URL `name` from the list `file`; relative paths start in the folder of the list."""
    if is_url(name) or os.path.isabs(name):
        return name
    join = posixpath.join if is_url(file) else os.path.join
    joined = join(posixpath.dirname(file), name)
    return joined if is_url(file) else os.path.normpath(joined)


def _reason(error: Exception) -> str:
    return one_line(error)[:200] or type(error).__name__


def open_binary(path: str) -> Any:
    """Open a local file or a URL for reading in binary mode.

    Raises:
        UserError: if the URL is malformed, its protocol is unknown, or its library is not installed.
        OSError: if a local file cannot be opened. A file system behind a URL may raise any exception.
    """
    if not is_url(path):
        return open(path, "rb")
    files, inside = open_file_system(path)
    return files.open(inside, "rb")

"""Read the pictures of a shard from disks, tables and URLs.

A picture that is missing or broken gets a row with an error. But if the whole source has disappeared (a disk
was unmounted, a server does not answer), the run stops, because pictures with a row are not read again.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby
from typing import Any

from PIL import Image

from ..data.images import open_image
from ..data.remote import is_url, open_file_system, read_bytes
from ..errors import UserError
from ..system.threads import ahead
from ..words import one_line
from .libraries import library
from .sources import Picture, open_binary

FETCHES = 16  # files that are fetched from URLs at the same time
_ROWS = 16  # pictures that are read from a table at a time
# Error numbers that mean that a disk or a network has failed, and not only that a file cannot be read.
_LOST = {
    *(errno.EIO, errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN),
    *(errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ECONNRESET, errno.ECONNREFUSED, errno.ESTALE),
}
Read = Callable[[], Image.Image]


class SourceLostError(Exception):
    """The loss of a whole source, such as an unmounted disk; a `UserError` concerns a single picture."""


def readers(pictures: Sequence[Picture], max_pixels: int) -> Iterator[Read]:
    """For each picture, yield a function that returns it, or raises a `UserError` if it is unreadable.

    A picture with more than `max_pixels` pixels counts as unreadable. Files behind URLs are fetched in
    advance.

    Raises:
        SourceLostError: if a source has disappeared; the functions raise it, too.
        UserError: if a table is to be read, and pyarrow is not installed.
    """
    for (table, remote), group in groupby(pictures, lambda one: (one.table, is_url(one.path))):
        if table:
            yield from _read_table(table, [one.row for one in group], max_pixels)
        elif remote:
            with ThreadPoolExecutor(FETCHES) as pool:
                yield from ahead((partial(_fetched, one, max_pixels) for one in group), pool, FETCHES)
        else:
            yield from (partial(_read_file, one, max_pixels) for one in group)


def _read_file(picture: Picture, max_pixels: int) -> Image.Image:
    try:
        return open_image(picture.path, max_pixels=max_pixels).picture
    except UserError as error:
        if getattr(error.__cause__, "errno", None) in _LOST or _has_gone(picture):
            raise _lost(picture.root or picture.path, error) from error
        raise


def _has_gone(picture: Picture) -> bool:
    """Return True if a picture is missing, and its `root` is missing too or is empty, as after an unmount.

    The result is False for a picture without `root`, which a list or a user named.
    """
    if not picture.root or os.path.exists(picture.path):
        return False
    try:
        with os.scandir(picture.root) as entries:
            return next(entries, None) is None
    except OSError:
        return True


def _fetched(picture: Picture, max_pixels: int) -> Read:
    try:
        content = _fetch(picture)
    except UserError as error:
        return partial(_raise, error)
    return partial(_decode, content, max_pixels)


def _fetch(picture: Picture) -> bytes:
    """Return the content of a URL.

    Raises:
        UserError: if the URL is that of a folder, or if the file does not exist, unless the folder that was
            searched no longer exists either.
        SourceLostError: if the file cannot be fetched, or the folder that was searched no longer exists.
    """
    try:
        return read_bytes(picture.path)
    except UserError as error:
        cause = error.__cause__
        if isinstance(cause, IsADirectoryError):
            raise
        if isinstance(cause, FileNotFoundError) and (not picture.root or _exists(picture.root)):
            raise
        raise _lost(picture.root or picture.path, error) from error


def _exists(url: str) -> bool:
    files, path = open_file_system(url, keeps_listings=False)
    try:
        return bool(files.exists(path))
    except Exception:  # a folder on a server that does not answer counts as missing
        return False


def _read_table(table: str, rows: Sequence[int], max_pixels: int) -> Iterator[Read]:
    """For each of the ascending `rows` of a table, yield a function that decodes the picture in that row.

    Only a few rows of the column `image` are read at a time.

    Raises:
        SourceLostError: if the table cannot be read or lacks a row.
    """
    parquet = library("pyarrow.parquet")
    wanted = iter(rows)
    row = next(wanted)
    try:
        with open_binary(table) as opened:
            file = parquet.ParquetFile(opened, buffer_size=2**20, pre_buffer=False)
            end = 0
            for group in range(file.num_row_groups):
                start, end = end, end + file.metadata.row_group(group).num_rows
                if row >= end:
                    continue
                for batch in file.iter_batches(_ROWS, row_groups=[group], columns=["image"]):
                    while start <= row < start + len(batch):
                        yield partial(_decode, batch.column(0)[row - start].as_py(), max_pixels)
                        following = next(wanted, None)
                        if following is None:
                            return
                        row = following
                    start += len(batch)
                    if row >= end:
                        break
    except GeneratorExit:
        raise
    except Exception as error:
        raise _lost(table, error) from error
    raise SourceLostError(f"{table} has no row {row}: it has changed since the run was begun.")


def _decode(content: Any, max_pixels: int) -> Image.Image:
    if isinstance(content, dict):  # the form in which the library `datasets` stores pictures
        content = content.get("bytes")
    if not isinstance(content, bytes):
        raise UserError(
            f"the row's image is {type(content).__name__}, but it must be bytes of an image file."
        )
    return open_image(content, max_pixels=max_pixels).picture


def _raise(error: UserError) -> Image.Image:
    raise error


def _lost(place: str, error: Exception) -> SourceLostError:
    reason = one_line(error).rstrip(".")[:300] or type(error).__name__
    return SourceLostError(
        f"{place} cannot be reached any more ({reason}): the finished parts are written; make it available "
        "and repeat the command to continue."
    )

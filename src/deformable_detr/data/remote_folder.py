"""Reading a data set's pictures from a URL, through a local disk cache of limited size."""

from __future__ import annotations

import hashlib
import posixpath
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from ..errors import UserError
from ..files import replacing, writing
from .remote import is_url, read_bytes

_INDEX = "index.sqlite"
_LOCK_TIMEOUT_S = 60
_TABLES = """
    CREATE TABLE IF NOT EXISTS source (name TEXT PRIMARY KEY, bytes INTEGER);
    CREATE TABLE IF NOT EXISTS file (name TEXT PRIMARY KEY, source TEXT, bytes INTEGER);
    CREATE INDEX IF NOT EXISTS file_of_source ON file (source);
"""


@dataclass(frozen=True)
class PictureCache:
    """A cache of files from a URL, in a local folder that all processes of a machine share.

    A file is added only if all files together then have at most `max_bytes`. Once the folder is full, further
    files are not kept: training reads every picture once per epoch, so keeping a fixed part saves as many
    reads as any other choice. Only files of other sources are deleted to make room.

    Attributes:
        folder: the local folder; it may be deleted while no process uses it.
        max_bytes: the maximum size of all files together; with 0, no file is kept.
        source: the URL of the folder from which the files are read.
    """

    folder: Path
    max_bytes: int
    source: str

    def read(self, url: str) -> bytes:
        """Return the content of the file at a URL, from the local folder if it was kept there.

        Raises:
            UserError: if the file cannot be read (see `read_bytes`), if the local folder cannot be written,
                or if a file in it cannot be read, or its index is damaged or locked for a minute.
        """
        name = hashlib.sha256(url.encode("utf-8", "surrogateescape")).hexdigest()
        try:
            return self._path(name).read_bytes()
        except FileNotFoundError:
            pass
        except OSError as error:
            raise self._unusable(self._path(name), error) from error
        content = read_bytes(url)
        if len(content) <= self.max_bytes and self._reserve(name, len(content)):
            with replacing(self._path(name)) as draft:
                draft.write_bytes(content)
        return content

    def _unusable(self, path: Path, error: Exception) -> UserError:
        return UserError(
            f"{path}, a file of the picture cache, cannot be used ({error}): delete {self.folder}, or name "
            "another folder (--data.cache_folder)."
        )

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / name

    def _reserve(self, name: str, num_bytes: int) -> bool:
        """Reserve space for a file and return True, or return False if there is no room.

        The file is counted before it is written. If the process is killed in between, the space stays
        reserved, and the file is written when it is read the next time.

        Raises:
            UserError: if the folder cannot be written, or its index is damaged or locked for a minute.
        """
        index = self.folder / _INDEX
        with writing(index):
            self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with closing(sqlite3.connect(index, timeout=_LOCK_TIMEOUT_S, isolation_level=None)) as kept:
                kept.execute("PRAGMA synchronous = OFF")
                kept.executescript(_TABLES)
                kept.execute("BEGIN IMMEDIATE")  # other processes wait
                has_room = self._count(kept, name, num_bytes)
                kept.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._unusable(index, error) from error
        return has_room

    def _count(self, kept: sqlite3.Connection, name: str, num_bytes: int) -> bool:
        if kept.execute("SELECT 1 FROM file WHERE name = ?", (name,)).fetchone():
            return True
        total, own = kept.execute(
            "SELECT coalesce(sum(bytes), 0), coalesce(sum(bytes) FILTER (WHERE name = ?), 0) FROM source",
            (self.source,),
        ).fetchone()
        if own + num_bytes > self.max_bytes:
            return False
        while total + num_bytes > self.max_bytes:
            other = kept.execute(
                "SELECT name FROM source WHERE name != ? AND bytes > 0", (self.source,)
            ).fetchone()
            old, size = kept.execute("SELECT name, bytes FROM file WHERE source = ?", other).fetchone()
            self._path(old).unlink(missing_ok=True)
            kept.execute("DELETE FROM file WHERE name = ?", (old,))
            kept.execute("UPDATE source SET bytes = bytes - ? WHERE name = ?", (size, *other))
            total -= size
        kept.execute("INSERT INTO file VALUES (?, ?, ?)", (name, self.source, num_bytes))
        kept.execute("INSERT OR IGNORE INTO source VALUES (?, 0)", (self.source,))
        kept.execute("UPDATE source SET bytes = bytes + ? WHERE name = ?", (num_bytes, self.source))
        return True


@dataclass(frozen=True)
class RemoteFile:
    """A picture behind a URL, which is read through a cache."""

    url: str
    cache: PictureCache

    def __str__(self) -> str:
        return self.url

    def read(self) -> bytes:
        """Return the file's content, from the cache if it was kept there.

        Raises:
            UserError: if the file cannot be read, or the cache's folder or index cannot be used.
        """
        return self.cache.read(self.url)


@dataclass(frozen=True)
class RemoteFolder:
    """The folder behind a URL that holds a data set's pictures under the names that its annotations state.

    `{split}` in the URL stands for the name of the split, such as val2017.
    """

    url: str
    cache: PictureCache

    def file(self, name: str, split: str = "") -> RemoteFile | None:
        """Return the file that the annotations of a split call `name`; it need not exist.

        Backslashes count as slashes. Return None if the name leads out of the folder, is the folder itself,
        or contains a NUL.
        """
        path = posixpath.normpath(name.replace("\\", "/"))
        if path.startswith(("/", "../")) or path in (".", "..") or "\0" in path:
            return None
        if self.url.startswith(("http://", "https://")):
            path = quote(path, errors="surrogateescape")
        return RemoteFile(f"{self.url.replace('{split}', split)}/{path}", self.cache)


def remote_folder(url: str | None, cache_gb: float, cache_folder: str) -> RemoteFolder | None:
    """Return the folder at `url` (the setting data.images), or None if `url` is None. Nothing is read yet.

    Args:
        url: the URL of the folder; `{split}` stands for the name of the split.
        cache_gb: the maximum size of the cache in units of 10⁹ bytes; with 0, no file is kept.
        cache_folder: the local folder of the cache; `~` is the home folder.

    Raises:
        UserError: if `url` is not a URL.
    """
    if url is None:
        return None
    if not is_url(url):
        raise UserError(
            f"data.images must be a URL such as s3://bucket/folder, not {url}: put pictures on this machine "
            "into the data set's folder, or write file:///folder."
        )
    url = url.rstrip("/")
    return RemoteFolder(url, PictureCache(Path(cache_folder).expanduser(), int(cache_gb * 1e9), url))

"""Lock an output folder, because two simultaneous runs would overwrite each other's files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import UserError
from ..files import output_folder, writing
from .names import LOCK_FILE

try:
    import fcntl
except ImportError:  # on Windows there is no lock
    fcntl = None  # type: ignore[assignment]


@contextmanager
def locked(output: Path, file: str = LOCK_FILE, work: str = "training") -> Iterator[None]:
    """Create and lock `output`, so that no other process does the same work there.

    The lock is released when the block or this process ends. It belongs to the process and not to its
    children, so a killed run can be resumed at once, even while its loader processes are still ending. There
    is no lock on Windows or on a file system that does not support locks.

    Args:
        output: the folder to lock.
        file: the name of the lock's file, one for each kind of work.
        work: the kind of work in the message, such as "training".

    Raises:
        UserError: if another process does this work there, or `output` cannot be written.
    """
    with output_folder(output):
        if fcntl is None:
            yield
            return
        path = output / file
        with writing(path):
            lock = _acquire(path, work)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # before the release, so that no process takes it in between
            os.close(lock)


def _acquire(path: Path, work: str) -> int:
    while True:
        lock = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:  # POSIX allows either
            owner = os.read(lock, 20).decode("ascii", "replace").strip() or "unknown"
            os.close(lock)
            raise UserError(
                f"another {work} is writing to {path.parent} (process {owner}): wait until it ends, stop "
                "it, or choose another --output."
            ) from error
        except OSError:  # a file system without locks
            return lock
        if os.fstat(lock).st_nlink:
            os.ftruncate(lock, 0)
            os.write(lock, f"{os.getpid()}\n".encode())
            return lock
        os.close(lock)  # the previous run has just ended and removed the file

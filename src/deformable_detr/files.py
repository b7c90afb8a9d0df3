"""Write files and folders completely or not at all, and report the operating system's errors as sentences.

`replacing` gives every writer a draft in the target's folder and renames it to the target when it is
complete. The drafts of a folder are in its hidden subfolder `DRAFTS`. Each draft has a lock there that is
released when its process ends, so that the next writer can remove the drafts of killed processes, but no
others.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

from .errors import UserError

try:
    import fcntl
except ImportError:  # Windows, where a killed process leaves its drafts behind
    fcntl = None  # type: ignore[assignment]

DRAFTS = ".deformable_detr.partial"

# Exceptions of `torch.load`, in addition to UnpicklingError, for a truncated or corrupted file. Which one is
# raised depends on the position of the damage.
DAMAGED_FILE_ERRORS = (
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    struct.error,
)

_REASONS = {
    errno.ENOSPC: "there is no space left on the disk; free some or name another path",
    errno.EDQUOT: "there is no space left in your quota; free some or name another path",
    errno.EFBIG: "the file is too large for this file system or for the limit of the process (ulimit -f)",
    errno.EROFS: "the file system is read-only; name another path",
    errno.EACCES: "permission is denied; change the permissions or name another path",
    errno.EPERM: "permission is denied; change the permissions or name another path",
}
_PROBE = b"\0" * 2**20  # larger than the free part of a file's last block


@contextmanager
def replacing(path: str | Path, drafts_in: Path | None = None) -> Iterator[Path]:
    """Yield the path of a draft file or folder that replaces `path` when the block ends.

    If the block raises, the draft is removed and `path` does not change. A reader sees either the old file or
    the complete new one; while a folder is replaced, it is missing for a moment. Missing parent folders are
    created. If `path` is a symbolic link, its target is replaced. Permissions follow the umask, even if the
    writing library sets others. The draft has the name of its target and is in a folder that the block may
    use for further files.

    Args:
        path: the file or folder to write.
        drafts_in: the folder that holds the draft, on the same disk; by default the target's folder.

    Raises:
        UserError: if `path` is a device, a pipe or a socket, is in a loop of symbolic links, or cannot be
            written, for example because the disk is full or read-only, or permission is missing.
    """
    with ExitStack() as stack:
        with writing(path):
            target = _target(Path(path))
            stack.enter_context(_existing(target.parent))
            lock, room = _open_room(drafts_in or target.parent)
            stack.callback(_close_room, lock, room)
            draft = room / "new" / target.name
            draft.parent.mkdir()
        with writing(path, draft):
            yield draft
            _follow_umask(draft, stat.S_IMODE(os.fstat(lock).st_mode))
            _put_into_place(draft, target, room / "old")


@contextmanager
def writing(path: str | Path, draft: Path | None = None) -> Iterator[None]:
    """Turn the errors of a block that writes `path` into a `UserError` that names `path`.

    `draft` is the file that the block writes instead of `path`; errors about any other file pass unchanged.
    Without `draft`, every `OSError` is converted. torch and other libraries do not report a full disk.
    Therefore, if an error does not state its cause, this function tries to extend the draft, and if that
    fails, it reports why.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        code = _code_of(error, draft)
        if code is None:
            raise
        reason = _REASONS.get(code) or f"{os.strerror(code)}; name another path"
        raise UserError(f"{path} cannot be written: {reason}.") from error


def write_text(path: str | Path, text: str) -> None:
    r"""Write UTF-8 text, completely or not at all. File names that are not UTF-8 become escapes (\udc80).

    Raises:
        UserError: if the file cannot be written.
    """
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: str | Path, content: Any, *, indent: int | None = 1) -> None:
    """Write strict JSON that ends with a newline, completely or not at all.

    Raises:
        UserError: if the file cannot be written.
        ValueError: if `content` contains NaN or infinity.
    """
    write_text(path, json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UserError: if the file cannot be read or does not contain a JSON object.
    """
    check_readable(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}).") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} contains a JSON {type(content).__name__}, but an object is expected.")
    return content


def check_readable(path: Path) -> None:
    """Raise a `UserError` if a file cannot be read. Its message states whether the file is missing.

    Libraries such as safetensors report an unreadable file as missing.
    """
    if is_pipe(path):
        raise UserError(f"{path} is a pipe, not a file: replace it.")
    try:
        with path.open("rb"):
            pass
    except PermissionError as error:
        raise UserError(f"{path} may not be read by this user: change its permissions.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}).") from error


def is_pipe(path: Path) -> bool:
    """Return True if `path` is a named pipe, which waits for a writer if it is opened.

    The result is False if the path cannot be examined, for example because its name is too long.
    """
    try:
        return path.is_fifo()
    except OSError:
        return False


def remove_abandoned(folder: Path) -> None:
    """Remove the drafts that killed writers left in `folder` and its subfolders, but no others.

    `replacing` does this only for the folder to which it writes.
    """
    for parent, folders, _ in os.walk(folder):
        if DRAFTS in folders:
            _remove_abandoned(Path(parent) / DRAFTS)


def check_output_file(path: str | Path) -> Path:
    """Return the path of an output file, or raise a `UserError` if no file can be written there.

    Commands call this function before they do any work. Missing parent folders are allowed.
    """
    target = _target(Path(path))
    if target.is_dir():
        raise UserError(f"--output {path} is a folder: name a file.")
    existing = next(folder for folder in target.parents if folder.exists())
    if not existing.is_dir():
        raise UserError(
            f"--output {path} cannot be created, because {existing} is a file: name another path."
        )
    if not os.access(existing, os.W_OK):
        raise UserError(f"--output {path}: you have no permission to write to {existing}; name another path.")
    return Path(path)


def make_output_folder(folder: Path) -> None:
    """Create an output folder and its parents, or raise a `UserError` if nothing can be written there.

    Commands call this function before they do any work. The folder may exist already. A link to a folder that
    does not exist yet is followed.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder} is a file: name a folder.")
    try:
        os.makedirs(os.path.realpath(folder), exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--output {folder} cannot be created ({error.strerror}): name another folder."
        ) from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"--output {folder}: you have no permission to write to it; name another folder.")


@contextmanager
def output_folder(folder: Path) -> Iterator[None]:
    """Call `make_output_folder`; if the block raises, remove the created folders that are still empty."""
    with _existing(folder, make_output_folder):
        yield


@contextmanager
def _existing(folder: Path, make: Callable[[Path], None] | None = None) -> Iterator[None]:
    """Create a folder and its parents; if the block raises, remove the new ones that are still empty.

    `make`, if given, is the function that creates them.
    """
    created = list(takewhile(lambda path: not path.exists(), (folder, *folder.parents)))
    if make is None:
        folder.mkdir(parents=True, exist_ok=True)
    else:
        make(folder)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # not empty
            for path in created:
                path.rmdir()
        raise


def _target(path: Path) -> Path:
    """Follow symbolic links to the path that is written, even if that path does not exist yet.

    Raises:
        UserError: if the path is a device, a pipe or a socket, or in a loop of symbolic links.
    """
    try:
        mode = path.expanduser().stat().st_mode
    except OSError:
        mode = None  # it does not exist yet; any other problem is reported when it is written
    if mode is not None and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UserError(
            f"{path} is a device, a pipe or a socket, which a file would replace: name another path."
        )
    target = Path(os.path.realpath(path.expanduser()))
    if target.is_symlink():
        raise UserError(f"{path} is in a loop of symbolic links: name another path.")
    return target


def _open_room(parent: Path) -> tuple[int, Path]:
    """Create a locked folder for one draft; return the lock's file descriptor and the folder.

    The folder is in the subfolder `DRAFTS` of `parent`, from which abandoned drafts are removed first.
    """
    drafts = parent / DRAFTS
    _remove_abandoned(drafts)
    while True:
        token = secrets.token_hex(8)
        with suppress(FileExistsError):  # (`exist_ok` looks at the folder again, when it may be gone)
            drafts.mkdir()
        try:
            lock = os.open(drafts / f"{token}.lock", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        except FileNotFoundError:
            if drafts.is_symlink():  # to nowhere
                raise
            continue  # another writer has just finished and removed the folder
        if _acquire(lock) is not False and os.fstat(lock).st_nlink:
            room = drafts / token
            room.mkdir()
            return lock, room
        os.close(lock)  # between the two calls, another writer took it for abandoned


def _close_room(lock: int, room: Path) -> None:
    shutil.rmtree(room, ignore_errors=True)
    os.close(lock)
    with suppress(OSError):
        room.with_name(f"{room.name}.lock").unlink()  # after the room, so that every room has a lock
    with suppress(OSError):  # other writers have drafts there
        room.parent.rmdir()


def _acquire(lock: int) -> bool | None:
    """Return whether this process now holds the lock, or None if the (file) system does not support locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _remove_abandoned(drafts: Path) -> None:
    """Remove the drafts of ended processes from the folder `drafts`, if it exists.

    A folder that an ended process had moved aside, but not yet replaced, is put back.
    """
    for path in _entries(drafts):
        if path.suffix != ".lock":
            continue
        try:
            lock = os.open(path, os.O_RDWR)
        except OSError:  # its writer has finished, or belongs to another user
            continue
        if not _acquire(lock):
            os.close(lock)
            continue
        room = path.with_suffix("")
        for old in _entries(room / "old"):  # killed between the renames of `_put_into_place`
            if not (drafts.parent / old.name).exists():
                os.rename(old, drafts.parent / old.name)
        _close_room(lock, room)


def _entries(folder: Path) -> list[Path]:
    """Return the entries of a folder; there are none if another writer has removed it."""
    try:
        return [folder / name for name in os.listdir(folder)]
    except OSError:  # `Path.glob` would raise this if the folder vanished between its two calls
        return []


def _follow_umask(draft: Path, file_mode: int) -> None:
    """Give a draft's files the mode of a new file.

    This is needed because some libraries create files that only the owner can read.
    """
    for path in (draft, *draft.rglob("*")) if draft.is_dir() else (draft,):
        if path.is_file() and stat.S_IMODE(path.stat().st_mode) != file_mode:
            path.chmod(file_mode)


def _put_into_place(draft: Path, target: Path, aside: Path) -> None:
    """Rename the draft to its target.

    If both are folders, the target is first moved into the new folder `aside`, because a folder cannot be
    renamed to one that has contents. If the draft cannot be renamed, the target is moved back.
    """
    if not (draft.is_dir() and target.is_dir()):
        os.replace(draft, target)
        return
    aside.mkdir()
    old = aside / target.name
    os.rename(target, old)
    try:
        os.rename(draft, target)
    except OSError:
        os.rename(old, target)
        raise


def _code_of(error: Exception, draft: Path | None) -> int | None:
    """Return the error number (errno) of a failure to write the draft, or None for any other error.

    Without a draft, every `OSError` counts as a failure to write the file.
    """
    if isinstance(error, OSError):
        if draft is None:
            return error.errno
        if error.filename is None:  # a failed write; a failure to open a file has a name
            return error.errno if error.errno in _REASONS else None
        return error.errno if Path(os.fsdecode(error.filename)).is_relative_to(draft.parent) else None
    rust = re.search(r"\(os error (\d+)\)", str(error))  # the end of such messages in Rust's standard library
    if rust:
        return int(rust[1])
    return None if draft is None or not draft.is_file() else _code_of_growing(draft)


def _code_of_growing(draft: Path) -> int | None:
    """Try to extend the draft, and return the error number, or None if this succeeds."""
    try:
        with draft.open("ab", buffering=0) as file:
            if file.write(_PROBE) < len(_PROBE):
                file.write(_PROBE)  # the first write was cut short; the second raises the error
    except OSError as error:
        return error.errno
    return None

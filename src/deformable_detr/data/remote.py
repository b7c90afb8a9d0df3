"""Reading of files behind URLs of all kinds that fsspec supports, such as `s3://`, `https://` and `file://`.

Networks fail occasionally, so a read is tried several times before its error is reported with the URL. Users
install the library that a protocol needs (s3fs, gcsfs, aiohttp) themselves.
"""

from __future__ import annotations

import re
import time
from typing import Any

from ..errors import UserError
from ..words import one_line

ATTEMPTS = 5
FIRST_WAIT_S = 0.5  # doubled after each attempt: 7.5 s in all
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::[A-Za-z][A-Za-z0-9+.-]*)*://")


def is_url(text: str) -> bool:
    """Return True if a string begins like a URL, with a protocol (`s3://`) or several (`zip::s3://`)."""
    return _URL.match(text) is not None


def open_file_system(url: str, *, keeps_listings: bool = True) -> tuple[Any, str]:
    """Return fsspec's file system for a URL, and the path in that file system.

    With `keeps_listings`, the file system remembers the folders that it has listed, as fsspec does by
    default. A forked process gets a separate file system, so the result must not be kept across a fork.

    Raises:
        UserError: if the protocol is unknown, its library is not installed, or the URL is malformed.
    """
    import fsspec

    try:
        options = {} if keeps_listings else {"use_listings_cache": False}
        file_system, path = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        reason = one_line(error).rstrip(".")
        raise UserError(f"{url} needs a library that is not installed ({reason}): install it.") from error
    except Exception as error:  # each protocol has its own exceptions
        raise UserError(f"{url} cannot be opened ({_reason(error)}): correct the URL.") from error
    return file_system, path


def read_bytes(url: str, *, attempts: int = ATTEMPTS) -> bytes:
    """Return the content of the file at a URL.

    A failed read is repeated after 0.5, 1, 2, … seconds, until `attempts` reads have failed. If the file does
    not exist, is a folder or may not be read, or if the URL is unusable, the error is raised at once.

    Raises:
        UserError: if the file cannot be read. The message contains the URL.
    """
    last: BaseException | None = None
    for attempt in range(attempts):
        if attempt:
            time.sleep(FIRST_WAIT_S * 2 ** (attempt - 1))
        file_system, path = open_file_system(url)
        try:
            content: bytes = file_system.cat_file(path)
            return content
        except FileNotFoundError as error:
            raise UserError(f"there is no file {url}: check the URL.") from error
        except (IsADirectoryError, PermissionError) as error:
            raise UserError(f"{url} cannot be read ({_reason(error)}): check the URL and access.") from error
        except Exception as error:  # each network library has its own exceptions
            last = error
    raise UserError(
        f"{url} could not be read in {attempts} attempts ({_reason(last)}): check the connection."
    ) from last


def _reason(error: BaseException | None) -> str:
    return one_line(f"{type(error).__name__}: {error}").rstrip(".: ")

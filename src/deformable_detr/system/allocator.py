"""Keep large buffers instead of giving them back at every free.

glibc returns a large block to the kernel as soon as it is freed, and the next one of that size costs a
page fault per 4 KiB again: in eager PyTorch on a CPU that is up to half of the time. A process that this
package owns (its commands) asks glibc to keep them; a host process that imports the package is left alone
and can set MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ in its environment.
"""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
KEEP_BYTES = 2**30


def keep_large_buffers() -> bool:
    """Ask the C library; False where it is not glibc, and nothing was changed."""
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    return bool(libc.mallopt(M_MMAP_THRESHOLD, KEEP_BYTES) and libc.mallopt(M_TRIM_THRESHOLD, KEEP_BYTES))

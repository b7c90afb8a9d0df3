"""Keep large buffers instead of returning them to the kernel whenever they are freed, except before a fork.

glibc returns a large block to the kernel as soon as it is freed, so that the next block of that size again
costs a page fault per 4 KiB. In eager PyTorch on a CPU, these page faults take up to half of the time. The
package's own commands ask glibc to keep such blocks. Importing the package does not change a process, which
can set MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ in its environment instead.

A process that forks must not keep free buffers. The child would inherit them, and when the parent wrote to
them again, the kernel would copy each page: the machine would then hold them twice.
"""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
KEEP_BYTES = 2**30


def keep_large_buffers() -> bool:
    """Ask glibc to keep large blocks. With another C library, change nothing and return False."""
    libc = _glibc()
    return libc is not None and bool(
        libc.mallopt(M_MMAP_THRESHOLD, KEEP_BYTES) and libc.mallopt(M_TRIM_THRESHOLD, KEEP_BYTES)
    )


def release_free_memory() -> bool:
    """Return all free memory to the kernel. With another C library, change nothing and return False.

    The next use of this memory costs page faults: about 0.2 s of processor time per gigabyte.
    """
    libc = _glibc()
    if libc is None:
        return False
    libc.malloc_trim(0)
    return True


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None

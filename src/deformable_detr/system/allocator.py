"""Keep large buffers instead of returning them to the kernel whenever they are freed.

glibc returns a large block to the kernel as soon as it is freed, so that the next block of that size again
costs a page fault per 4 KiB. In eager PyTorch on a CPU, these page faults take up to half of the time. The
package's own commands ask glibc to keep such blocks. Importing the package does not change a process, which
can set MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ in its environment instead.
"""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
KEEP_BYTES = 2**30


def keep_large_buffers() -> bool:
    """Ask glibc to keep large blocks. With another C library, change nothing and return False."""
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    return bool(libc.mallopt(M_MMAP_THRESHOLD, KEEP_BYTES) and libc.mallopt(M_TRIM_THRESHOLD, KEEP_BYTES))

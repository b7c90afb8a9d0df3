"""Keep large buffers instead of returning them to the kernel whenever they are freed, except on request.

glibc returns a large block to the kernel as soon as it is freed, so that the next block of that size again
costs a page fault per 4 KiB. In eager PyTorch on a CPU, these page faults take up to half of the time. The
package's own commands ask glibc to keep such blocks. Importing the package does not change a process, which
can set MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_ and THP_MEM_ALLOC_ENABLE in its environment instead.

PyTorch is also asked for huge pages (2 MiB). A gigabyte of them costs 0.3 s of processor time to get, instead
of 1.2 s (measured in training on a virtual AMD Zen 3). Large buffers then start at multiples of 2 MiB, so
that buffers of many sizes leave smaller gaps.

What is kept has two costs, for which `release_free_memory` is the remedy. First, buffers of varying sizes
leave gaps, which accumulate. Second, a child that is forked inherits free buffers. When the parent writes to
them again, the kernel copies each page, and the machine holds them twice.
"""

from __future__ import annotations

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
KEEP_BYTES = 2**30
HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"  # PyTorch reads it at its first allocation


def keep_large_buffers() -> bool:
    """Ask glibc to keep large blocks, and PyTorch to use huge pages if it has not allocated anything yet.

    With another C library, change nothing and return False.
    """
    libc = _glibc()
    if libc is None:
        return False
    os.environ.setdefault(HUGE_PAGES, "1")
    return bool(libc.mallopt(M_MMAP_THRESHOLD, KEEP_BYTES) and libc.mallopt(M_TRIM_THRESHOLD, KEEP_BYTES))


def release_free_memory() -> bool:
    """Return all free memory to the kernel. With another C library, change nothing and return False.

    The next use of this memory costs page faults, as above.
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

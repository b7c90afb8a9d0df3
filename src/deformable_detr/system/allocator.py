"""Keep large buffers, up to 1 GiB each and in total, when they are freed, until their return is requested.

glibc returns a large block to the kernel as soon as it is freed, so that the next block of that size again
costs a page fault per 4 KiB. In eager PyTorch on a CPU, these page faults take up to half of the time. The
package's commands ask glibc to keep such blocks. Importing the package changes nothing; for other programs,
set MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_ and THP_MEM_ALLOC_ENABLE in the environment instead.

The commands also ask PyTorch to use huge pages (2 MiB). Allocating a gigabyte then takes 0.3 s of processor
time instead of 1.2 s (measured in training on a virtual AMD Zen 3). Large buffers then start at multiples of
2 MiB, so that buffers of many sizes leave smaller gaps.

Keeping free buffers has two costs, which `release_free_memory` limits. First, buffers of varying sizes leave
gaps, which accumulate. Second, a forked child inherits free buffers. When the parent writes to them again,
the kernel copies each page, and the machine holds them twice.
"""

from __future__ import annotations

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
KEEP_BYTES = 2**30
MAX_OF_OLD_GLIBC = 2**25  # the largest M_MMAP_THRESHOLD that glibc before 2.35 accepts
HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"  # PyTorch reads it at its first allocation


def keep_large_buffers() -> bool:
    """Ask glibc to keep large blocks, and PyTorch to use huge pages if it has not allocated anything yet.

    Return whether glibc accepts this. With another C library, change nothing and return False.
    """
    libc = _glibc()
    if libc is None:
        return False
    os.environ.setdefault(HUGE_PAGES, "1")
    accepted = any(libc.mallopt(M_MMAP_THRESHOLD, size) for size in (KEEP_BYTES, MAX_OF_OLD_GLIBC))
    return bool(accepted and libc.mallopt(M_TRIM_THRESHOLD, KEEP_BYTES))


def release_free_memory() -> bool:
    """Give all free memory back to the kernel and return True; if the C library is not glibc, return False.

    Using this memory again costs a page fault for each page (4 KiB or 2 MiB).
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

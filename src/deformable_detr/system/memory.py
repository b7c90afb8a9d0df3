"""Measure the memory of this process and its children, in bytes."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

STATUS = Path("/proc/self/status")  # on Linux only


def peak_bytes() -> int:
    """Return the peak of this process's resident memory so far or, on Linux, since `reset_peak`, in bytes."""
    if STATUS.exists():
        return status_bytes("VmHWM")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_peak() -> int:
    """Reset the peak of `peak_bytes`, and return the resident memory of this process in bytes.

    On systems other than Linux, nothing is reset, and the result is the peak so far.
    """
    if not STATUS.exists():
        return peak_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM
    return status_bytes("VmRSS")


def status_bytes(name: str) -> int:
    """Return a size from /proc/self/status, such as VmRSS, in bytes; see proc(5).

    Raises:
        RuntimeError: if the file does not list this size.
        OSError: if the system, such as macOS, has no such file.
    """
    line = re.search(rf"^{name}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    if line is None:
        raise RuntimeError(f"{STATUS} has no {name}: memory cannot be measured on this system.")
    return int(line[1]) * 1024


def peak_bytes_with_children() -> int:
    """Return the peak of this process plus the memory that its children add to it now, in bytes.

    The peak is that of `peak_bytes`. Systems other than Linux do not list the children.
    """
    return peak_bytes() + bytes_of_children()


def bytes_of_children() -> int:
    """Return the bytes that this process's children add to its memory, or 0 if the system does not list them.

    A forked child shares pages with its parent until one of the two writes to them. Pages that only children
    share count too, once; on Linux before 5.3, they do not count.
    """
    own, of_children = _rollup("self"), [each for each in map(_rollup, children()) if each]
    private = sum(map(_private, of_children))
    if "Pss_Anon" not in own:  # Linux before 5.3
        return private
    # Each process counts only its share of a page, so the sum of all shares counts every page once.
    different = own["Pss_Anon"] + sum(each["Pss_Anon"] for each in of_children)
    shared_memory = sum(each["Pss_Shmem"] for each in of_children)
    return max(private, different - own["Anonymous"] + shared_memory) if of_children else 0


def children() -> tuple[int, ...]:
    """Return the ids of this process's children; the result is empty if the system does not list them.

    Only children that the main thread started are listed.
    """
    try:
        text = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    except OSError:
        return ()
    return tuple(map(int, text.split()))


def private_bytes(process: int) -> int:
    """Return the bytes of memory that a process shares with no other process.

    The result is 0 if the process has ended, or on systems other than Linux.
    """
    return _private(_rollup(process))


def _private(rollup: Mapping[str, int]) -> int:
    return sum(size for name, size in rollup.items() if name.startswith("Private_"))


def _rollup(process: int | str) -> dict[str, int]:
    """Return the sizes in /proc/PROCESS/smaps_rollup by name, in bytes; empty if it cannot be read."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return {}
    rows = (line.split() for line in lines if line.endswith(" kB"))
    return {name.removesuffix(":"): int(size) * 1024 for name, size, _ in rows}

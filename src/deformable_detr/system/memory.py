"""Measure the memory of this process and its children, in bytes."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")  # on Linux only


def peak_bytes() -> int:
    """Return the maximum resident memory of this process so far, or since `reset_peak`."""
    if STATUS.exists():
        return status_bytes("VmHWM")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_peak() -> int:
    """Reset the peak and return the resident memory. On systems other than Linux, the peak is not reset."""
    if not STATUS.exists():
        return peak_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM
    return status_bytes("VmRSS")


def status_bytes(name: str) -> int:
    """Return the value of a line of /proc/self/status, such as VmRSS; see proc(5)."""
    line = re.search(rf"^{name}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    if line is None:
        raise RuntimeError(f"{STATUS} has no {name}: memory cannot be measured on this system.")
    return int(line[1]) * 1024


def bytes_of_children() -> int:
    """Return the current private memory of this process's children, or 0 if the system does not list them."""
    return sum(map(private_bytes, children()))


def children() -> tuple[int, ...]:
    """Return the ids of this process's children; the result is empty if the system does not list them."""
    try:
        text = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    except OSError:
        return ()
    return tuple(map(int, text.split()))


def private_bytes(process: int) -> int:
    """Return the memory that a process shares with no other process, or 0 if the process has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))

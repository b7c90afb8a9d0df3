"""Resident memory of this process, now and at its peak, as Linux counts it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def peak_bytes() -> int:
    """The most memory that was resident so far, or since `reset_peak`."""
    if _STATUS.exists():
        return _status_bytes("VmHWM")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_peak() -> int:
    """Forget the peak so far and return what is resident now. On other systems than Linux the peak stays."""
    if not _STATUS.exists():
        return peak_bytes()
    _CLEAR.write_text("5")  # proc(5): resets VmHWM
    return _status_bytes("VmRSS")


def _status_bytes(name: str) -> int:
    line = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    if line is None:
        raise RuntimeError(f"{_STATUS} has no {name}: memory cannot be measured on this system.")
    return int(line[1]) * 1024

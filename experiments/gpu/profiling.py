"""Profiles of the time and of the host's waits, for making the code faster later without a GPU."""

from __future__ import annotations

import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

ROWS = 25
OURS = ("/deformable_detr/", "/experiments/")
STOPWATCH = ("/clock.py", "/profiling.py")


def profiled(title: str, call: Callable[[], Any], device: torch.device, file: Path) -> dict[str, Any]:
    """Append tables of one call's kernels and operators to `file`; return the sums and the top kernels."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    call()
    with profile(activities=activities, record_shapes=False) as found:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
    averages = found.key_averages()
    with file.open("a", encoding="utf-8") as text:
        for heading, order in (("GPU", "self_device_time_total"), ("host", "self_cpu_time_total")):
            if heading == "host" or device.type == "cuda":
                table = averages.table(sort_by=order, row_limit=ROWS, max_name_column_width=90)
                text.write(f"==== {title}: by time on the {heading}\n{table}\n")
    kernels = [event for event in averages if event.device_type.name == "CUDA"]
    return {
        "gpu_ms": sum(event.self_device_time_total for event in kernels) / 1e3,
        "host_ms": sum(event.self_cpu_time_total for event in averages) / 1e3,
        "kernels": sum(event.count for event in kernels),
        "top": [
            {"kernel": event.key[:110], "ms": event.self_device_time_total / 1e3, "calls": event.count}
            for event in sorted(kernels, key=lambda event: -event.self_device_time_total)[:ROWS]
        ],
    }


@contextmanager
def host_waits() -> Iterator[Counter[str]]:
    """Count the places in the block at which the host waits for the GPU.

    The counter's keys name our innermost line and, if it is a different one, the line that caused the wait.
    """
    found: Counter[str] = Counter()
    show = warnings.showwarning

    def note(message: Warning | str, *arguments: Any, **options: Any) -> None:
        if "synchroniz" not in str(message):
            return
        frames = [frame for frame in traceback.extract_stack() if not frame.filename.endswith(STOPWATCH)]
        ours = [frame for frame in frames if any(part in frame.filename for part in OURS)]
        here = _place(ours[-1]) if ours else "outside of the package"
        below = [frame for frame in frames if "warnings" not in frame.filename]
        deepest = _place(below[-1]) if below else here
        found[here if deepest == here else f"{here} via {deepest}"] += 1

    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
            warnings.showwarning = show


def _place(frame: traceback.FrameSummary) -> str:
    parts = Path(frame.filename).parts
    return f"{'/'.join(parts[-3:])}:{frame.lineno} {(frame.line or '').strip()[:90]}"

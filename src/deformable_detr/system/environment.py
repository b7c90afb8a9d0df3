"""Describe the machine and the package versions that a program uses.

A run folder stores one such description per start (run_folder/log.py), so that it can be looked up later.
"""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from typing import Any

import torch

from .machine import system, versions_of

PACKAGES = ("deformable-detr", "torchvision", "timm", "faster-coco-eval")


def environment(device: str | torch.device, processes: int = 1) -> dict[str, Any]:
    """Return the `time` (UTC), `device`, `processes`, `system`, `python` and `versions` as JSON values.

    The `device` is described in words, and `processes` is the number of processes that train together.
    """
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": _in_words(torch.device(device)),
        "processes": processes,
        "system": system(),
        "python": platform.python_version(),
        # torch.__version__ also states the version of CUDA that it was built for.
        "versions": {"torch": torch.__version__, **versions_of(PACKAGES)},
    }


def _in_words(device: torch.device) -> str:
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{device.type}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {capability}"

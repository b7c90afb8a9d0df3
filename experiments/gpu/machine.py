"""A description of the machine, and its measured peak rates, from which the floors are computed."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deformable_detr import ops

from .clock import median_ms
from .report import Facts, write_json

PACKAGES = ("torch", "triton", "torchvision", "timm", "accelerate", "transformers", "numpy", "pytest")


def note_machine(device: torch.device, work: Path, seed: int) -> None:
    """Write the description of the machine and the seed to `machine.json`."""
    write_json(work / "machine.json", {**machine(device), "seed": seed})


def machine(device: torch.device) -> Facts:
    facts: Facts = {
        "device": str(device),
        "python": sys.version.split()[0],
        "packages": {name: _version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
        "operator": ops.kernels(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "commit": os.environ.get("GPU_CHECK_COMMIT") or _output("git", "rev-parse", "HEAD"),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "card": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "l2_bytes": getattr(properties, "L2_cache_size", None),
            "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
            "clocks": _output("nvidia-smi", "--query-gpu=clocks.sm,clocks.max.sm", "--format=csv,noheader"),
        }
    return facts


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def measured_rates(device: torch.device, quick: bool) -> dict[str, float]:
    """Measure the bytes per second (read and written) of copies from memory and from the L2 cache, and the
    operations per second of large matrix products."""
    big, small = (2**20, 2**18) if quick else (2**28, 2**21)  # float32 numbers: 1 GiB, 8 MiB
    side = 256 if quick else 8192
    rates: dict[str, float] = {}
    for name, numbers in (("memory_bytes_per_second", big), ("cache_bytes_per_second", small)):
        source = torch.randn(numbers, device=device)
        target = torch.empty_like(source)
        milliseconds = median_ms(_copy(target, source), device, quick=quick)
        rates[name] = 2 * 4 * numbers / milliseconds * 1e3
    for name, dtype, tf32 in (
        ("bf16_operations_per_second", torch.bfloat16, False),
        ("tf32_operations_per_second", torch.float32, True),
        ("fp32_operations_per_second", torch.float32, False),
    ):
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = tf32
        left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        milliseconds = median_ms(_product(left, right), device, quick=quick)
        torch.backends.cuda.matmul.allow_tf32 = before
        rates[name] = 2 * side**3 / milliseconds * 1e3
    return rates


def _copy(target: Tensor, source: Tensor) -> Callable[[], Any]:
    return lambda: target.copy_(source)


def _product(left: Tensor, right: Tensor) -> Callable[[], Any]:
    return lambda: left @ right

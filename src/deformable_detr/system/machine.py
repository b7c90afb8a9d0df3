"""Describe the machine: its processor, its system and the versions of its packages."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

PACKAGE = "deformable-detr"


def version_of(package: str) -> str | None:
    """Return the version of an installed distribution, or None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of the packages that are installed."""
    return {name: version for name in packages if (version := version_of(name)) is not None}


def package_version() -> str:
    """Return this package's version, or `unknown` if it runs from a source tree and is not installed."""
    return version_of(PACKAGE) or "unknown"


def system() -> str:
    """Return the operating system and the architecture."""
    return f"{platform.system()} {platform.machine()}"


def num_cores() -> int:
    """Return the number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_model() -> str:
    """Return the processor's name, family and model, because hypervisors shorten the name to "AMD EPYC"."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return platform.processor() or platform.machine()
    facts: dict[str, str] = {}
    for line in path.read_text().splitlines():
        name, _, fact = line.partition(":")
        facts.setdefault(name.strip(), fact.strip())
    model = facts.get("model name", platform.machine())
    if "cpu family" in facts:
        model += f" (family {facts['cpu family']}, model {facts['model']})"
    return model

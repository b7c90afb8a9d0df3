"""Describe the machine: its processor, its operating system and its package versions."""

from __future__ import annotations

import math
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
    """Return the versions of packages by name, without those that are not installed."""
    return {name: version for name in packages if (version := version_of(name)) is not None}


def package_version() -> str:
    """Return this package's version, or `unknown` if it runs from a source tree and is not installed."""
    return version_of(PACKAGE) or "unknown"


def system() -> str:
    """Return the operating system and the processor architecture, for example `Linux x86_64`."""
    return f"{platform.system()} {platform.machine()}"


def num_cores() -> int:
    """Return the number of processor cores that this process may use at the same time.

    The process's affinity (taskset, cpusets) and a container's quota limit it. The quota is rounded up: with
    a quota of 1.5, two threads do 1.5 times as much as one.
    """
    quota = cpu_quota()
    cores = cores_of_affinity()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def cores_of_affinity() -> int:
    """Return the number of processor cores on which this process may run, regardless of its quota."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load_average() -> float | None:
    """Return the mean number of processes that ran or waited for a core in the last minute.

    Return None on systems that do not state it, such as Windows.
    """
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the seconds of processor time per second that control groups allow.

    Return None if there is no limit, or if the system has no control groups. The result is the smallest quota
    of the process's group and of all groups above it. In a container, the paths in /proc/self/cgroup may be
    those of the host; the container's group is then the root of the mounted tree.

    Args:
        root: the folder that contains `proc` and `sys`; tests replace it.
    """
    try:
        rows = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    quotas = []
    for _, controllers, group in (row.split(":", 2) for row in rows if row.count(":") >= 2):
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounts = ("cpu", "cpu,cpuacct") if controllers else ("", "unified")  # version 1, version 2
        for mount in mounts:
            top = root / "sys/fs/cgroup" / mount
            own = top / group.lstrip("/")
            folders = [own, *own.parents]
            quotas += [_quota_of(each) for each in folders if each == top or top in each.parents]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_of(folder: Path) -> float | None:
    """Return the quota in the files of a control group (version 2 or 1), or None if it has none."""
    try:
        if (folder / "cpu.max").exists():
            allowed, period = (folder / "cpu.max").read_text().split()
        else:
            allowed = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
    except OSError:  # no such group, or not visible from here
        return None
    if allowed in ("max", "-1"):
        return None
    return int(allowed) / int(period)


def cpu_model() -> str:
    """Return the processor's name, with its family and model if the system states them.

    Hypervisors may shorten the name to "AMD EPYC", so the name alone does not identify the processor.
    """
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

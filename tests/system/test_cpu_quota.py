"""The quota of processor time, from the files of control groups of both versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from deformable_detr.system import machine
from deformable_detr.system.machine import cpu_quota, num_cores


def files_of(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    for name, content in {"proc/self/cgroup": cgroup, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


V2, V1 = "0::/jobs/mine\n", "3:cpuset:/\n2:cpu,cpuacct:/docker/abc\n1:name=systemd:/\n"


@pytest.mark.parametrize(
    ("cgroup", "files", "quota"),
    [
        (V2, {"sys/fs/cgroup/jobs/mine/cpu.max": "150000 100000\n"}, 1.5),
        (V2, {"sys/fs/cgroup/jobs/mine/cpu.max": "max 100000\n"}, None),
        (
            V2,
            {
                "sys/fs/cgroup/jobs/mine/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/jobs/cpu.max": "50000 100000\n",
            },
            0.5,
        ),
        # In a container, the mounted root is the container's own group.
        ("0::/host/path\n", {"sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2.0),
        ("0::/\n", {"sys/fs/cgroup/unified/cpu.max": "200000 100000\n"}, 2.0),
        (
            V1,
            {
                "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000\n",
            },
            3.0,
        ),
        (
            V1,
            {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        (V2, {}, None),
    ],
    ids=["v2", "v2-max", "v2-parent", "v2-container", "v2-unified", "v1", "v1-none", "no-files"],
)
def test_quota(tmp_path: Path, cgroup: str, files: dict[str, str], quota: float | None) -> None:
    assert cpu_quota(files_of(tmp_path, cgroup, files)) == quota


def test_a_system_without_control_groups(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None


@pytest.mark.parametrize(("quota", "cores"), [(0.5, 1), (1.5, 2), (2.0, 2), (64.0, 4), (None, 4)])
def test_a_quota_limits_the_cores(monkeypatch: pytest.MonkeyPatch, quota: float | None, cores: int) -> None:
    monkeypatch.setattr(machine, "cpu_quota", lambda: quota)
    monkeypatch.setattr(machine, "cores_of_affinity", lambda: 4)
    assert num_cores() == cores

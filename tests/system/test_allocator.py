"""Buffers that are kept, and given back, in a process of their own because the settings cannot be undone."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deformable_detr.system.allocator import (
    HUGE_PAGES,
    M_MMAP_THRESHOLD,
    M_TRIM_THRESHOLD,
    keep_large_buffers,
    release_free_memory,
)

CODE = """
import numpy as np
from deformable_detr.system.allocator import keep_large_buffers, release_free_memory
from deformable_detr.system.memory import status_bytes

assert keep_large_buffers()
before = status_bytes("VmRSS")
buffers = [np.ones(10_000_000, dtype=np.uint8) for _ in range(20)]
del buffers
kept = status_bytes("VmRSS") - before
assert release_free_memory()
print(kept, status_bytes("VmRSS") - before)
"""


@pytest.mark.skipif(not release_free_memory(), reason="the C library is not glibc")
def test_free_buffers_are_kept_until_they_are_released() -> None:
    answer = subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True)
    kept, left = map(int, answer.stdout.split())
    assert kept > 150_000_000
    assert left < 50_000_000


def test_an_older_glibc_keeps_smaller_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    accepted: dict[int, int] = {}

    class OldGlibc:
        gnu_get_libc_version = None

        def mallopt(self, option: int, value: int) -> bool:
            if option == M_MMAP_THRESHOLD and value > 2**25:
                return False
            accepted[option] = value
            return True

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: OldGlibc())
    monkeypatch.setenv(HUGE_PAGES, "1")
    assert keep_large_buffers()
    assert accepted == {M_MMAP_THRESHOLD: 2**25, M_TRIM_THRESHOLD: 2**30}


HUGE = """
import re
from pathlib import Path
from deformable_detr.system.allocator import keep_large_buffers

keep_large_buffers()
import torch
buffer = torch.ones(10_000_000)
print(re.search(r"AnonHugePages: +(\\d+) kB", Path("/proc/self/smaps_rollup").read_text())[1])
"""
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(
    not SETTING.exists() or "[never]" in SETTING.read_text() or not release_free_memory(),
    reason="the system has no transparent huge pages, or the C library is not glibc",
)
def test_large_buffers_are_in_huge_pages() -> None:
    environment = {name: value for name, value in os.environ.items() if name != HUGE_PAGES}
    answer = subprocess.run(
        [sys.executable, "-c", HUGE], check=True, capture_output=True, text=True, env=environment
    )
    assert int(answer.stdout) > 10_000

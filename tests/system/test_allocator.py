"""Buffers that are kept, and given back, in a process of their own because the settings cannot be undone."""

from __future__ import annotations

import subprocess
import sys

import pytest

from deformable_detr.system.allocator import release_free_memory

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

"""Memory of this process and its children."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deformable_detr.system.memory import bytes_of_children, children, peak_bytes, private_bytes


def test_peak_of_this_process() -> None:
    assert 5e7 < peak_bytes() < 1e12  # PyTorch alone takes more than the lower bound


def test_the_memory_of_loaders_counts() -> None:
    code = "import sys; held = b'x' * 50_000_000; print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        if not Path(f"/proc/self/task/{os.getpid()}/children").exists():
            pytest.skip("this system does not list a process's children")
        assert child.pid in children()
        assert 5e7 < private_bytes(child.pid) < 2e8
        assert bytes_of_children() > 5e7
        child.communicate()
    assert private_bytes(child.pid) == 0

from __future__ import annotations

import mmap

import numpy as np

from deformable_detr.system.machine import cpu_model, num_cores, version_of, versions_of
from deformable_detr.system.memory import peak_bytes, reset_peak


def test_versions_are_those_of_installed_packages() -> None:
    assert version_of("no-such-distribution-here") is None
    assert versions_of(["numpy", "no-such-distribution-here"]) == {"numpy": np.__version__}


def test_the_processor_has_a_name_and_cores() -> None:
    assert cpu_model()
    assert num_cores() >= 1


def test_the_peak_includes_what_was_freed() -> None:
    before = reset_peak()
    # Straight from the kernel: the C library may still hold freed memory, whose reuse moves no peak.
    with mmap.mmap(-1, 50_000_000) as block:
        block.write(b"x" * len(block))
    assert peak_bytes() >= before + 40_000_000

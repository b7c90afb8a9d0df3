from __future__ import annotations

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
    block = np.ones(50_000_000, dtype=np.uint8)
    del block
    assert peak_bytes() >= before + 40_000_000

"""experiments/benchmark/rivals.py: each rival's process and environment, and processes beside them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deformable_detr.system.allocator import HUGE_PAGES
from deformable_detr.system.openmp import SPINS
from experiments.benchmark.rivals import busy_processes, environment_of_our_commands, process_of_each


def nothing(name: str) -> None:
    pass


def test_only_its_own_process_has_a_rival_s_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OURS_ALONE", raising=False)
    additions = {"ours": {"OURS_ALONE": "yes"}, "theirs": {}}
    with process_of_each(additions, nothing, additions.__getitem__) as processes:
        found = {name: each.submit(os.getenv, "OURS_ALONE").result() for name, each in processes.items()}
    assert found == {"ours": "yes", "theirs": None}
    assert "OURS_ALONE" not in os.environ


def test_our_commands_set_what_the_benchmark_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (SPINS, "OMP_WAIT_POLICY", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)
    assert {HUGE_PAGES, SPINS} <= environment_of_our_commands(busy=True).keys()
    assert SPINS not in environment_of_our_commands(busy=False)


def test_processes_are_busy_until_the_end() -> None:
    with busy_processes(2) as programs:
        assert len(set(programs)) == 2
        assert all(Path(f"/proc/{program}").exists() for program in programs)
    assert not any(Path(f"/proc/{program}").exists() for program in programs)

"""The environment that decides how many threads PyTorch has and how they wait."""

from __future__ import annotations

import os

import pytest

from deformable_detr.system import openmp
from deformable_detr.system.openmp import (
    SPINS,
    THREADS,
    WAITING,
    prepare_threads,
    thread_settings,
    waiting_in_words,
)


def cores(monkeypatch: pytest.MonkeyPatch, usable: int, of: int) -> None:
    monkeypatch.setattr(openmp, "num_cores", lambda: usable)
    monkeypatch.setattr(openmp, "cores_of_affinity", lambda: of)


def let_the_package_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*WAITING, THREADS):
        monkeypatch.setenv(name, "")  # so that what the package sets is removed after the test
        monkeypatch.delenv(name)


def test_a_quota_limits_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    cores(monkeypatch, usable=2, of=64)
    assert thread_settings({}, spin_briefly=False)[THREADS] == "2"
    assert THREADS not in thread_settings({THREADS: "5"}, spin_briefly=False)


def test_without_a_quota_pytorch_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    cores(monkeypatch, usable=4, of=4)
    assert THREADS not in thread_settings({}, spin_briefly=True)


@pytest.mark.parametrize("name", WAITING)
def test_the_user_s_choice_of_waiting_stays(name: str) -> None:
    assert SPINS in thread_settings({}, spin_briefly=True)
    assert SPINS not in thread_settings({name: "7"}, spin_briefly=True)
    assert SPINS not in thread_settings({}, spin_briefly=False)


@pytest.mark.parametrize(
    ("load", "usable", "of", "lasting", "briefly"),
    [
        (0.2, 2, 2, False, False),  # idle
        (1.0, 2, 2, False, True),
        (0.2, 2, 2, True, True),
        (5.0, 8, 64, False, False),  # enough cores are left
        (60.0, 8, 64, False, True),
    ],
)
def test_threads_spin_briefly_if_others_need_their_cores(
    load: float, usable: int, of: int, lasting: bool, briefly: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cores(monkeypatch, usable, of)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: of)
    let_the_package_decide(monkeypatch)
    prepare_threads(lasting=lasting)
    assert (os.environ.get(SPINS) == "1000") == briefly


def test_a_system_that_does_not_state_its_load_counts_as_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "getloadavg", raising=False)
    let_the_package_decide(monkeypatch)
    prepare_threads(lasting=False)
    assert os.environ[SPINS] == "1000"


def test_waiting_in_words() -> None:
    assert waiting_in_words({SPINS: "3000", "PATH": "/bin"}) == "GOMP_SPINCOUNT=3000"
    assert "default" in waiting_in_words({})

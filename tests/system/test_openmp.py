"""The environment that decides how many threads PyTorch has and how they wait."""

from __future__ import annotations

import pytest

from deformable_detr.system import openmp
from deformable_detr.system.openmp import SPINS, THREADS, WAITING, thread_settings, waiting_in_words


def cores(monkeypatch: pytest.MonkeyPatch, usable: int, of: int) -> None:
    monkeypatch.setattr(openmp, "num_cores", lambda: usable)
    monkeypatch.setattr(openmp, "cores_of_affinity", lambda: of)


def test_a_quota_limits_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    cores(monkeypatch, usable=2, of=64)
    assert thread_settings({})[THREADS] == "2"
    assert THREADS not in thread_settings({THREADS: "5"})


def test_without_a_quota_pytorch_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    cores(monkeypatch, usable=4, of=4)
    assert THREADS not in thread_settings({})


@pytest.mark.parametrize("name", WAITING)
def test_the_user_s_choice_of_waiting_stays(name: str) -> None:
    assert SPINS in thread_settings({})
    assert SPINS not in thread_settings({name: "7"})


def test_waiting_in_words() -> None:
    assert waiting_in_words({SPINS: "3000", "PATH": "/bin"}) == "GOMP_SPINCOUNT=3000"
    assert "default" in waiting_in_words({})

"""Training runs that are stopped at a chosen update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from deformable_detr.training import run as training
from deformable_detr.training.optimisation import learning_rate_factor


class CrashError(Exception):
    """Simulates a power cut."""


def crash(*args: Any, **kwargs: Any) -> Any:
    raise CrashError


def before_update(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], None]) -> None:
    """Call `act` once, at the start of update `number` (from 1)."""
    waiting = [True]

    def factor(config: Any, step: int, steps_per_epoch: int) -> float:
        if step == number - 1 and waiting:
            waiting.clear()
            act()
        return learning_rate_factor(config, step, steps_per_epoch)

    monkeypatch.setattr(training, "learning_rate_factor", factor)

"""Shared by the tests of training; they only read the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from deformable_detr.training import train
from tests.support.tiny import tiny_config


@pytest.fixture(scope="session")
def whole_run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """A run of two epochs of six updates each that was never stopped."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    train(tiny_data, tiny_config(), run)
    return run

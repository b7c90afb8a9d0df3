"""A rehearsal trains as `train` does, with the first epoch's images, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from deformable_detr.training import train
from deformable_detr.training.parts import build_parts
from deformable_detr.training.rehearsal import evaluation_seconds, take_largest_update, timed_updates
from tests.support.tiny import state, tiny_config

pytestmark = pytest.mark.usefixtures("one_thread")


def test_its_updates_are_those_of_training(tiny_data: Path, tmp_path: Path) -> None:
    run = build_parts(tiny_data, tiny_config(), tmp_path / "rehearsed", device="cpu")
    assert len(list(timed_updates(run))) == run.updates_per_epoch == 6
    train(tiny_data, tiny_config(max_steps=6), tmp_path / "trained")
    trained = state(tmp_path / "trained")
    assert run.state.step == trained["step"] == 6
    for name, value in run.state.model.state_dict().items():
        assert torch.equal(value, trained["model"][name]), name
    assert not (tmp_path / "rehearsed").exists()


def test_the_largest_update_and_the_evaluation(tiny_data: Path, tmp_path: Path) -> None:
    run = build_parts(tiny_data, tiny_config(), tmp_path / "run", device="cpu")
    assert take_largest_update(run) == (64, 80)
    assert run.state.step == 1
    assert evaluation_seconds(run, 2) > 0


def test_accumulated_updates_count_once(tiny_data: Path, tmp_path: Path) -> None:
    run = build_parts(tiny_data, tiny_config(accumulate=2), tmp_path / "run", device="cpu")
    assert run.total_batch == 4
    assert len(list(timed_updates(run))) == run.updates_per_epoch == 3
    take_largest_update(run)
    assert run.state.step == 4

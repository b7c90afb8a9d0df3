"""The first signal only asks training to stop; a second Ctrl-C does not wait."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from deformable_detr.data.loading import Sample, SampleKey, Samples
from deformable_detr.errors import TrainingInterruptedError
from deformable_detr.training import run as training
from deformable_detr.training import train
from deformable_detr.training.signals import StopNow, StopRequest, catch_stop_signals
from tests.support.tiny import assert_same_run, tiny_config


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_request(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with catch_stop_signals() as stop:
        assert not stop.requested
        signal.raise_signal(number)
        assert stop.requested
        signal.raise_signal(signal.SIGTERM)  # schedulers repeat it
    assert signal.getsignal(number) == before


def test_a_second_ctrl_c_stops_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with catch_stop_signals():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def test_a_signal_ends_waiting_at_once() -> None:
    with catch_stop_signals() as stop:
        with pytest.raises(StopNow), stop.at_once():
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(StopNow), stop.at_once():
            raise AssertionError("an earlier signal was forgotten")
        signal.raise_signal(signal.SIGTERM)  # outside of such a block


def test_training_that_waits_for_pictures_can_be_stopped(
    whole_run: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk does not answer: the run is saved after the last whole update, and continues exactly."""
    read = Samples.__getitem__
    main = os.getpid()

    def never(self: Samples, key: SampleKey) -> Sample:
        if len(seen) == 6:  # three updates of two pictures
            os.kill(main, signal.SIGTERM)
            time.sleep(60)
        seen.append(key)
        return read(self, key)

    seen: list[SampleKey] = []
    with monkeypatch.context() as patch:
        patch.setattr(Samples, "__getitem__", never)
        with pytest.raises(TrainingInterruptedError, match="stopped after update 3 of 12"):
            train(tiny_data, tiny_config(), tmp_path / "run")
    train(tiny_data, None, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", whole_run)


def test_training_that_evaluates_can_be_stopped(
    whole_run: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def endless(*_: Any, **__: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        time.sleep(60)

    with monkeypatch.context() as patch:
        patch.setattr(training, "evaluate", endless)
        with pytest.raises(TrainingInterruptedError, match="stopped after update 6 of 12"):
            train(tiny_data, tiny_config(), tmp_path / "run")
    train(tiny_data, None, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", whole_run)


def test_other_threads_train_without_handlers() -> None:
    requests: list[StopRequest] = []

    def work() -> None:
        with catch_stop_signals() as stop:
            requests.append(stop)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [stop.requested for stop in requests] == [False]

"""The first signal only asks training to stop; a second Ctrl-C does not wait."""

from __future__ import annotations

import signal
import threading

import pytest

from deformable_detr.training.signals import StopRequest, catch_stop_signals


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


def test_other_threads_train_without_handlers() -> None:
    requests: list[StopRequest] = []

    def work() -> None:
        with catch_stop_signals() as stop:
            requests.append(stop)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [stop.requested for stop in requests] == [False]

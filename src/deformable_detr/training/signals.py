"""Ctrl-C and SIGTERM let training finish its update and save its state.
If it only waits, they stop it at once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


class StopNow(BaseException):
    """Raised by a signal where nothing has to be finished. No library that is being called may catch it."""


@dataclass
class StopRequest:
    """`requested` becomes true with the first signal."""

    requested: bool = False
    stops_at_once: bool = False

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A block in which a signal raises `StopNow`, also one that came before."""
        self.stops_at_once = True
        try:
            if self.requested:
                raise StopNow
            yield
        finally:
            self.stops_at_once = False


@contextmanager
def catch_stop_signals() -> Iterator[StopRequest]:
    """Catch Ctrl-C and SIGTERM for a block; a second Ctrl-C raises KeyboardInterrupt at once."""
    stop = StopRequest()

    def request(number: int, frame: FrameType | None) -> None:
        if stop.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.requested = True
        if stop.stops_at_once:
            stop.stops_at_once = False  # once
            raise StopNow

    try:
        previous = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread, where Python allows no handlers
        previous = {}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

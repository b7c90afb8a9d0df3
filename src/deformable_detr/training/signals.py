"""Signal handling: on Ctrl-C and SIGTERM, training finishes its update and saves its state.

If training is waiting for data or evaluating, it stops at once.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


class StopNow(BaseException):
    """The exception that the handler of a signal raises if nothing has to be finished.

    It is a `BaseException`, so that libraries that catch every `Exception` do not catch it.
    """


@dataclass
class StopRequest:
    """A request to stop; `requested` becomes True when the first signal arrives.

    While `stops_at_once` is True, the next signal also raises `StopNow`.
    """

    requested: bool = False
    stops_at_once: bool = False

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Raise `StopNow` if a signal arrives inside the block, or has arrived before."""
        self.stops_at_once = True
        try:
            if self.requested:
                raise StopNow
            yield
        finally:
            self.stops_at_once = False


@contextmanager
def catch_stop_signals() -> Iterator[StopRequest]:
    """Turn the first Ctrl-C or SIGTERM in the block into a `StopRequest`.

    A Ctrl-C after that raises KeyboardInterrupt, and a further SIGTERM has no effect.

    Only the main thread can catch signals. In other threads, nothing is caught, and no stop is requested.
    """
    stop = StopRequest()

    def request(number: int, frame: FrameType | None) -> None:
        if stop.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.requested = True
        if stop.stops_at_once:
            stop.stops_at_once = False  # only the first signal raises it
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

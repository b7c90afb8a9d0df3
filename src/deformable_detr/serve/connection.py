"""A uvicorn connection with limits on the wait for a request and on the number of connections."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """A connection that closes itself if its client is too slow, or if there are too many connections.

    `headers_s` is the maximum number of seconds until a request begins, from a request's first byte until its
    headers are complete, and from the end of an answer until the rest of the request's body has arrived.
    """

    headers_s: ClassVar[float] = 10.0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.limit_concurrency is not None and len(self.connections) > self.limit_concurrency:
            transport.abort()
            return
        self._wait(self._close)

    def data_received(self, data: bytes) -> None:
        if self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]:  # a request begins
            self._wait(self._close)
        super().data_received(data)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait(self._close)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_waiting()

    def _wait(self, then: Callable[[], None]) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(self.headers_s, then)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            return  # a request is being answered, and the gate limits its time
        self.transport.close()
        self._wait(self.transport.abort)  # if the client does not read the rest of an answer

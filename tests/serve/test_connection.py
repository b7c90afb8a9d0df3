"""The time that a connection gives a request's headers, on a clock that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from deformable_detr.serve.connection import Connection
from deformable_detr.serve.server import KEEP_ALIVE_S

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Clock:
    """An event loop whose time does not pass by itself."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[float, asyncio.TimerHandle]] = []
        self.create_task = asyncio.get_running_loop().create_task

    def call_later(self, delay: float, callback: Callable[..., Any]) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(self.now + delay, callback, (), asyncio.get_running_loop())
        self.timers.append((self.now + delay, handle))
        return handle

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while due := [timer for timer in self.timers if timer[0] <= end]:
            first = min(due, key=lambda timer: timer[0])
            self.timers.remove(first)
            self.now, handle = first
            if not handle.cancelled():
                handle._run()
        self.now = end


class Client(asyncio.Transport):
    """The other end of a connection, which keeps what it is sent."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock, self.received, self.closed = clock, b"", False
        config = uvicorn.Config(answer_at_once, http=Connection, timeout_keep_alive=KEEP_ALIVE_S, ws="none")
        self.connection = Connection(config, ServerState(), {}, clock)  # type: ignore[arg-type]
        self.connection.connection_made(self)

    async def send(self, data: bytes) -> None:
        self.connection.data_received(data)
        while self.connection.tasks:
            await asyncio.sleep(0)

    def write(self, data: Any) -> None:
        self.received += data

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


async def answer_at_once(_: Any, __: Any, send: Callable[..., Any]) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize("pipelined", [1, 3])
def test_a_further_request_has_the_whole_time_for_its_headers(pipelined: int) -> None:
    async def check() -> None:
        client = Client(Clock())
        await client.send(REQUEST * pipelined)
        assert client.received.count(b"204") == pipelined
        client.clock.wait(KEEP_ALIVE_S - 0.1)
        await client.send(REQUEST[:10])
        client.clock.wait(Connection.headers_s - 0.1)
        assert not client.closed
        await client.send(REQUEST[10:20])
        client.clock.wait(0.2)
        assert client.closed

    asyncio.run(check())


def test_headers_that_are_complete_in_time_are_answered() -> None:
    async def check() -> None:
        client = Client(Clock())
        for number in range(1, 4):
            await client.send(REQUEST[:10])
            client.clock.wait(Connection.headers_s - 0.1)
            assert not client.closed
            await client.send(REQUEST[10:])
            assert client.received.count(b"204") == number
            client.clock.wait(KEEP_ALIVE_S - 0.1)
        client.clock.wait(0.2)
        assert client.closed

    asyncio.run(check())

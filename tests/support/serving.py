"""Servers for tests: a tiny model behind the application, in process, and clients of it."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import httpx
import numpy as np
from PIL import Image

from deformable_detr.config import RunConfig
from deformable_detr.detections import ClassTable
from deformable_detr.inference.detector import Backend, Detector
from deformable_detr.inference.loading import new_checkpoint
from deformable_detr.serve import Server, ServeSettings, create_app
from deformable_detr.serve.server import ServerProcess
from deformable_detr.structures import ImageBatch, Predictions
from tests.support.small_models import randomise
from tests.support.tiny import tiny_config

EVIL = '</script><img src=x onerror="alert(1)">&amp;'
NAMES = ("car", EVIL, "größer")


def tiny_detector(config: RunConfig | None = None) -> Detector:
    """Return an untrained detector whose weights yield detections everywhere."""
    config = config or tiny_config()
    checkpoint = new_checkpoint(config.model, ClassTable.from_names(NAMES), config.data, config.recipe, None)
    randomise(checkpoint.model)
    return Detector.of(checkpoint, "cpu")


@dataclass
class WatchedBackend(Backend):
    """A backend that records the shapes of its batches, and waits for `go` before each.

    `begun` counts the batches that it has received, including those that still wait for `go`.
    """

    inner: Backend
    go: threading.Event = field(default_factory=threading.Event)
    batches: list[tuple[int, ...]] = field(default_factory=list)
    begun: int = 0

    def __call__(self, batch: ImageBatch) -> Predictions:
        self.begun += 1
        assert self.go.wait(100)
        self.batches.append(tuple(batch.pixels.shape))
        return self.inner(batch)


def watch(detector: Detector) -> WatchedBackend:
    watched = WatchedBackend(detector.backend)
    watched.go.set()
    detector.backend = watched
    return watched


def picture(seed: int = 0, size: tuple[int, int] = (64, 80)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def png(array: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def form(*contents: bytes) -> list[tuple[str, tuple[str, bytes, str]]]:
    return [("images", (f"{i}.png", content, "image/png")) for i, content in enumerate(contents)]


def client_of(server: Server, **options: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(server, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=300, **options)


@asynccontextmanager
async def running(
    detector: Detector, settings: ServeSettings | None = None, *, wait: bool = True, **options: Any
) -> AsyncIterator[tuple[Server, httpx.AsyncClient]]:
    """Yield a server, which is ready unless `wait` is False, and a client with the given `options`."""
    server = create_app(detector, settings)
    async with server.api.router.lifespan_context(server.api), client_of(server, **options) as client:
        while wait and server.engine.state == "starting":
            await asyncio.sleep(0.01)
        assert not wait or server.engine.state == "ready"
        yield server, client


@contextmanager
def in_a_thread(process: ServerProcess) -> Iterator[tuple[str, threading.Thread]]:
    """Start a server and return its address and its thread, once it listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=process.run, args=([bound],))
        thread.start()
        try:
            wait_until(lambda: process.started or not thread.is_alive())  # it was only bound before
            yield f"http://127.0.0.1:{bound.getsockname()[1]}", thread
        finally:
            process.should_exit = True
            thread.join(100)
            assert not thread.is_alive()


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds. The limit is for a test that would never end; a busy machine is slow."""
    async with asyncio.timeout(100):
        while not condition():
            await asyncio.sleep(0.005)


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait as `until` does, in a thread without an event loop."""
    end = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def kind_of(answer: httpx.Response) -> str:
    """Return the kind of error in an answer, after checking the answer's form."""
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"kind", "message"}
    message = body["error"]["message"]
    assert message.endswith((".", " s."))
    assert "Traceback" not in message
    kind: str = body["error"]["kind"]
    return kind

"""The model behind a server: a bounded queue, a few decoding threads, and one thread that computes batches.

A picture is accepted, or refused with 429. One of the decoding threads decodes and resizes it. It then waits
for other pictures of its shape, at most a few milliseconds and only while others are expected. Finally
the model's thread computes the batch; PyTorch parallelises that computation over further threads. Only
pictures of equal resized shape share a batch, as in `Detector.predict`, so the result does not depend on
other requests.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from enum import StrEnum
from typing import Any, TypeVar

import numpy as np
from PIL.Image import Image
from torch import Tensor

from ..detections import Detections
from ..errors import UserError
from ..explain.page import page_data
from ..inference.detector import Detector
from ..inference.selection import Selection
from ..inference.trace import Explanation
from .metrics import Metrics
from .refusals import Kind, Refusal
from .settings import ServeSettings
from .uploads import Upload
from .waiting import Waiting, WaitingPictures

READ_AHEAD = 4  # batches of decoded pictures that may wait for the model
EXPLAINED_AT_ONCE = 2  # decoded pictures in full size that may wait to be explained
EXPLANATION_NUMBERS = 1_000_000  # limit of 16-bit numbers in one explanation: less than 3 MB of base64
WARM_UP_SIZE = (480, 640)  # (height, width), reduced if max_pixels requires it
LONGEST_RETRY_S = 60
Result = TypeVar("Result")


class State(StrEnum):
    """The state of an engine: only READY accepts requests."""

    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    FAILED = "failed"


class Engine:
    """One detector that many requests share. Call all methods from the same event loop."""

    def __init__(self, detector: Detector, settings: ServeSettings, metrics: Metrics):
        self.detector, self.settings, self.metrics = detector, settings, metrics
        self.state = State.STARTING
        self.can_explain = False
        self.accepted = 0  # number of pictures that are accepted and not yet answered
        self.max_pixels = min(settings.max_pixels, detector.data.max_pixels)
        self._model = ThreadPoolExecutor(1, "model")
        self._decoders = ThreadPoolExecutor(settings.decode_threads, "decode")
        self._decoded = asyncio.Semaphore(READ_AHEAD * settings.max_batch)
        self._explained = asyncio.Semaphore(EXPLAINED_AT_ONCE)
        self._waiting = WaitingPictures(
            settings.max_batch, settings.batch_wait_ms / 1000, lambda: self.accepted
        )
        self._seconds_per_picture = 0.1
        self._batching: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Start batching, warm up the model by computing one picture, then accept requests and return.

        No requests are accepted if `stop` has been called in the meantime. If the model cannot compute, the
        state becomes FAILED, and the model's exception is raised.
        """
        self._batching = asyncio.create_task(self._batch_forever())
        try:
            self.can_explain = await self._in(self._model, self._warm_up)
        except Exception:
            self.state = State.FAILED
            raise
        if self.state is State.STARTING:
            self.state = State.READY
            self.metrics.ready.set(1)

    def stop(self) -> None:
        """Refuse new requests; accepted ones are still answered."""
        self.state = State.STOPPING
        self.metrics.ready.set(0)

    async def close(self) -> None:
        """Refuse new requests, stop batching, and end the threads after their current calculations.

        Requests that are still waiting get no result.
        """
        self.stop()
        if self._batching is not None:
            self._batching.cancel()
        for pool in (self._decoders, self._model):
            await asyncio.to_thread(pool.shutdown, cancel_futures=True)

    def check_open(self) -> None:
        """Raise a `Refusal` unless the engine accepts requests."""
        if self.state is State.STARTING:
            raise Refusal(Kind.STARTING, "the server is warming up: try again in a few seconds.", 2)
        if self.state is State.STOPPING:
            raise Refusal(Kind.STOPPING, "the server is stopping: try another one, or later.", 5)
        if self.state is State.FAILED:
            raise Refusal(Kind.FAILED, "the model could not be warmed up: the server's log says why.")

    def busy(self, what: str) -> Refusal:
        """Return the refusal for a full server, with an estimate of the time after which to try again.

        The estimate is from 1 to 60 seconds. `what` is the part of the message that states what is full.
        """
        seconds = math.ceil(self.accepted * self._seconds_per_picture)
        wait = min(LONGEST_RETRY_S, max(1, seconds))
        return Refusal(Kind.BUSY, f"the server is busy ({what}): try again in {wait} s.", wait)

    # ------------------------------------------------------------------ requests

    async def detect(
        self, uploads: Sequence[Upload], selection: Selection, max_detections: int
    ) -> list[Detections]:
        """Return the selected detections of each picture, in the order of `uploads`.

        There are at most `max_detections` per picture, best first. Unlike in `Detector.predict`, detections
        are counted after classes are left out, and the results do not contain the pictures. If classes are
        left out, the detections are selected from the picture's `settings.max_detections` best ones.

        Raises:
            Refusal: if the queue is full, or a picture cannot be read or has too many pixels.
            UserError: if an exported file cannot compute the pictures, or the model's output is not finite.
        """
        # A class filter chooses from the largest permitted number; without one, the best detections suffice.
        candidates = self.settings.max_detections if selection.leaves_classes_out else max_detections
        with self._places(len(uploads)):
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(self._detect(upload, candidates)) for upload in uploads]
            except ExceptionGroup as several:
                raise several.exceptions[0] from None
            selected = [selection(task.result()) for task in tasks]
            return [found.take(np.arange(min(len(found), max_detections))) for found in selected]

    async def explain(self, upload: Upload, threshold: float | None, max_detections: int) -> dict[str, Any]:
        """Return where the model looked in a picture, as a dictionary with the fields of `ExplainAnswer`.

        There are at most `max_detections` detections, and `total` in the result is their number. Only the
        best of them are explained if the model looks at very many points. If `threshold` is None, the model's
        own thresholds apply.

        Raises:
            Refusal: if the queue is full, the picture cannot be read or has too many pixels, or the model
                cannot be explained.
            UserError: if the model's output is not finite.
        """
        if not self.can_explain:
            raise Refusal(
                Kind.CANNOT_EXPLAIN,
                "this model cannot be explained, it is an exported file: serve the checkpoint it was made "
                "from.",
            )
        with self._places(1):
            async with self._explained:
                picture = await self._in(self._decoders, upload.decoded, self.max_pixels)
                return await self._in(
                    self._model, _explained, self.detector, picture, threshold, max_detections
                )

    async def in_background(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Run a short function in a thread, so that it delays no other request, and return its result."""
        return await self._in(self._decoders, function, *arguments)

    # ------------------------------------------------------------------ queue and batches

    @contextmanager
    def _places(self, number: int) -> Iterator[None]:
        if self.accepted + number > self.settings.queue_size:
            raise self.busy(f"{self.accepted} pictures are waiting")
        self.accepted += number
        self.metrics.queue.set(self.accepted)
        try:
            yield
        finally:
            self.accepted -= number
            self.metrics.queue.set(self.accepted)

    async def _detect(self, upload: Upload, candidates: int) -> Detections:
        async with self._decoded:
            start = time.perf_counter()
            pixels, size = await self._in(self._decoders, self._prepare, upload)
            now = time.perf_counter()
            self.metrics.stage_seconds.labels("decode").observe(now - start)
            answer: asyncio.Future[Detections] = asyncio.get_running_loop().create_future()
            self._waiting.add(Waiting(pixels, size, candidates, now, answer))
            return await answer

    async def _batch_forever(self) -> None:
        while True:
            batch = await self._waiting.next_batch()
            now = time.perf_counter()
            for waiting in batch:
                self.metrics.stage_seconds.labels("wait").observe(now - waiting.since)
            try:
                results = await self._in(self._model, self._compute, batch)
            except Exception as error:
                for waiting in batch:
                    if not waiting.answer.done():
                        waiting.answer.set_exception(error)
                continue
            seconds = time.perf_counter() - now
            self.metrics.batches.observe(len(batch))
            self.metrics.pictures.inc(len(batch))
            self.metrics.stage_seconds.labels("model").observe(seconds)
            self._seconds_per_picture += 0.2 * (seconds / len(batch) - self._seconds_per_picture)
            for waiting, result in zip(batch, results, strict=True):
                if not waiting.answer.done():  # the client may have disconnected
                    waiting.answer.set_result(result)

    async def _in(self, pool: Executor, function: Callable[..., Result], *arguments: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(pool, function, *arguments)

    # ------------------------------------------------------------------ run in threads

    def _prepare(self, upload: Upload) -> tuple[Tensor, tuple[int, int]]:
        """Return the model's input, (3, h, w), and the height and width of the upload in pixels."""
        picture = upload.decoded(self.max_pixels)
        return self.detector.preprocess(picture), (picture.height, picture.width)

    def _compute(self, batch: Sequence[Waiting]) -> list[Detections]:
        return self.detector.detect(
            [waiting.pixels for waiting in batch],
            [waiting.size for waiting in batch],
            max_detections=batch[0].candidates,
        )

    def _warm_up(self) -> bool:
        """Predict and explain one picture; return True if the model can be explained."""
        height, width = WARM_UP_SIZE
        picture = np.zeros(
            (min(height, self.max_pixels // width) or 1, min(width, self.max_pixels), 3), np.uint8
        )
        self.detector.predict(picture)
        try:
            page_data(self.detector.explain(picture, max_detections=1), self.detector.selection())
        except UserError:
            return False
        return True


def _explained(
    detector: Detector, picture: Image, threshold: float | None, max_detections: int
) -> dict[str, Any]:
    explanation = detector.explain(picture, threshold, max_detections=max_detections)
    attention = explanation.queries.attention
    numbers = attention.weights[:1].size * (3 if hasattr(attention, "locations") else 1)
    shown = min(len(explanation), EXPLANATION_NUMBERS // max(1, numbers))
    rows = np.arange(shown)
    part = Explanation(explanation.detections.take(rows), explanation.queries.take(rows), None)
    data = page_data(part, detector.selection(threshold))
    # These fields explain chosen positions in a picture; the server does not offer such explanations.
    del data["encoder"], data["tokens"]
    return {**data, "total": len(explanation)}

"""Preprocessed pictures that wait for the model, and the choice of those that it computes together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from torch import Tensor

from ..detections import Detections


@dataclass(frozen=True, eq=False)  # compared by identity: two pictures are never equal
class Waiting:
    """A preprocessed picture for which a request awaits detections.

    `pixels`: (3, height, width), the model's input. `size`: the height and width of the original, in pixels.
    `candidates`: the maximum number of detections. `since`: the time at which it began to wait, by
    `time.perf_counter`, in seconds. `answer`: where the result goes; done if the client has disconnected.
    """

    pixels: Tensor
    size: tuple[int, int]
    candidates: int
    since: float
    answer: asyncio.Future[Detections]

    @property
    def key(self) -> tuple[int, ...]:
        """A value that is equal for all pictures that may share a batch."""
        return (*self.pixels.shape, self.candidates)


class WaitingPictures:
    """The pictures that wait for the model, in the order of arrival. All calls come from one event loop.

    Args:
        max_batch: the maximum number of pictures in a batch.
        batch_wait_s: the longest time, in seconds, for which a picture waits for others.
        accepted: a function that returns the number of pictures that are accepted and not yet answered.
    """

    def __init__(self, max_batch: int, batch_wait_s: float, accepted: Callable[[], int]):
        self._max_batch, self._batch_wait_s, self._accepted = max_batch, batch_wait_s, accepted
        self._pictures: list[Waiting] = []
        self._arrival = asyncio.Event()

    def add(self, picture: Waiting) -> None:
        self._pictures.append(picture)
        self._arrival.set()

    async def next_batch(self) -> list[Waiting]:
        """Return the next batch once it is full or has waited long enough, or no more pictures are expected.

        The batch contains the picture that has waited longest and others with the same key, at most
        `max_batch` pictures in total.
        """
        while True:
            self._pictures = [picture for picture in self._pictures if not picture.answer.done()]
            if self._pictures:
                oldest = self._pictures[0]
                batch = [other for other in self._pictures if other.key == oldest.key][: self._max_batch]
                left = oldest.since + self._batch_wait_s - time.perf_counter()
                on_their_way = self._accepted() - len(self._pictures)
                if len(batch) == self._max_batch or left <= 0 or on_their_way <= 0:
                    self._pictures = [picture for picture in self._pictures if picture not in batch]
                    return batch
            else:
                left = None
            self._arrival.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._arrival.wait(), left)

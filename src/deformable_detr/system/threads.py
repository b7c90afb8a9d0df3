"""Work ahead of and behind the model, so that it waits for no file."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from itertools import repeat
from types import TracebackType
from typing import Any, TypeVar

READ_AHEAD = 2  # batches that are read while the model works
WRITE_BEHIND = 8  # pictures that may wait to be drawn
Item = TypeVar("Item")


def ahead(calls: Iterable[Callable[[], Item]], pool: Executor, most: int) -> Iterator[Item]:
    """What the calls return, in their order. The threads of `pool` make up to `most` calls in advance."""
    waiting: deque[Future[Item]] = deque()
    for call in calls:
        waiting.append(pool.submit(call))
        if len(waiting) > most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def read_ahead(items: Iterator[Item], thread: Executor) -> Iterator[Item]:
    """The same items, made by the one thread of `thread`, some in advance."""
    calls: Iterator[Callable[[], Item | None]] = repeat(partial(next, items, None))
    for item in ahead(calls, thread, READ_AHEAD):
        if item is None:
            return
        yield item


class Behind:
    """Calls made by one other thread, in their order. What one of them raises comes out here, later."""

    def __enter__(self) -> Behind:
        self._thread = ThreadPoolExecutor(1)
        self._waiting: deque[Future[None]] = deque()
        return self

    def __call__(self, work: Callable[..., None], *arguments: Any) -> None:
        self._waiting.append(self._thread.submit(work, *arguments))
        while len(self._waiting) > WRITE_BEHIND:
            self._waiting.popleft().result()

    def finish(self) -> None:
        """Wait until all is done."""
        while self._waiting:
            self._waiting.popleft().result()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # After a failure the rest is useless; after Ctrl-C it is wanted.
        self._thread.shutdown(cancel_futures=kind is not None and issubclass(kind, Exception))
        if kind is None:
            self.finish()

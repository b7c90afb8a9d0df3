"""Work ahead of and behind the model, so that it waits for no file."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

READ_AHEAD = 2  # batches that are read while the model works
WRITE_BEHIND = 8  # pictures that may wait to be drawn
Item = TypeVar("Item")


def ahead(items: Iterator[Item], thread: Executor) -> Iterator[Item]:
    """The same items, made by the (one) thread of `thread`, some in advance."""
    coming = deque(thread.submit(next, items, None) for _ in range(READ_AHEAD))
    while (item := coming.popleft().result()) is not None:
        coming.append(thread.submit(next, items, None))
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
        # After a failure the rest is of no use; after Ctrl-C it is.
        self._thread.shutdown(cancel_futures=kind is not None and issubclass(kind, Exception))
        if kind is None:
            self.finish()

"""Read inputs and write results in other threads while the model computes.

`limited_threads` sets the number of threads of the model's arithmetic itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import repeat
from types import TracebackType
from typing import Any, TypeVar

READ_AHEAD = 2  # batches that are read while the model works
WRITE_BEHIND = 8  # pictures that may wait to be drawn
Item = TypeVar("Item")


def ahead(calls: Iterable[Callable[[], Item]], pool: Executor, limit: int) -> Iterator[Item]:
    """Yield the calls' results in order, while the threads of `pool` make up to `limit` calls in advance.

    If a call raises an exception, the iterator raises it when it reaches this call.
    """
    waiting: deque[Future[Item]] = deque()
    for call in calls:
        waiting.append(pool.submit(call))
        if len(waiting) > limit:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def read_ahead(items: Iterator[Item], thread: Executor) -> Iterator[Item]:
    """Yield the items until the first None or the end, while `thread` produces READ_AHEAD items in advance.

    `thread` must have only one thread, because two threads may not advance an iterator at once.
    """
    calls: Iterator[Callable[[], Item | None]] = repeat(partial(next, items, None))
    for item in ahead(calls, thread, READ_AHEAD):
        if item is None:
            return
        yield item


class Behind:
    """A context manager that makes calls in order in another thread.

    Calling the object adds a call and returns at once, unless more than WRITE_BEHIND calls are waiting. If a
    call raises an exception in the thread, a later call, `finish` or the exit from the block raises it again.
    If the block itself raises an `Exception`, the calls that have not begun are dropped.
    """

    def __enter__(self) -> Behind:
        self._thread = ThreadPoolExecutor(1)
        self._waiting: deque[Future[None]] = deque()
        return self

    def __call__(self, work: Callable[..., None], *arguments: Any) -> None:
        self._waiting.append(self._thread.submit(work, *arguments))
        while len(self._waiting) > WRITE_BEHIND:
            self._waiting.popleft().result()

    def finish(self) -> None:
        """Wait until all calls have returned, or raise the exception of the first that failed."""
        while self._waiting:
            self._waiting.popleft().result()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # After a failure the remaining calls are useless; after Ctrl-C their results are wanted.
        self._thread.shutdown(cancel_futures=kind is not None and issubclass(kind, Exception))
        if kind is None:
            self.finish()


@contextmanager
def limited_threads(number: int) -> Iterator[None]:
    """Let PyTorch use `number` threads for operations on the CPU in a block."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)

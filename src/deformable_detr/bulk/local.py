"""The engine for this machine: one worker in this process, or several workers in separate processes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import cache, partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from ..errors import WorkerLostError
from ..inference.detector import Detector
from .job import Job
from .plan import Plan
from .table import Part
from .worker import Worker

_worker: Callable[[], Worker]  # returns the worker of this process, if it belongs to the pool


def run_here(job: Job, plan: Plan, shards: Iterable[Any], detector: Detector) -> Generator[Part]:
    """Compute the parts of the shards in this process, and yield them in the order of the shards.

    Raises:
        UserError: if a source has disappeared, the model's output is not finite, or the job names an unknown
            class.
    """
    yield from map(Worker(job, plan, detector), shards)


def run_processes(job: Job, plan: Plan, shards: Iterable[Any], workers: int) -> Generator[Part]:
    """Compute the parts of the shards in `workers` processes, and yield each part when it is finished.

    The parts come in any order.

    Raises:
        UserError: if a source has disappeared, the model's output is not finite, or a process cannot load the
            model of `job`.
        WorkerLostError: if one of the processes is killed.
    """
    context = get_context("spawn")  # a fork would copy the locks of threads
    # The processes end when this end of the pipe is closed, which also happens if this process is killed.
    ours, theirs = context.Pipe()
    pool = ProcessPoolExecutor(workers, context, _start, (theirs, job, plan))
    try:
        yield from _finished(pool, shards, 2 * workers)
        pool.shutdown()
    except BrokenProcessPool as error:
        raise WorkerLostError(
            "a worker process was killed, perhaps because memory ran out: the finished parts are written; "
            "repeat the command to continue, with fewer --workers if it happens again."
        ) from error
    finally:
        ours.close()
        theirs.close()
        pool.shutdown(cancel_futures=True)


def _finished(pool: ProcessPoolExecutor, shards: Iterable[Any], limit: int) -> Generator[Part]:
    waiting: set[Future[Part]] = set()
    for shard in shards:
        waiting.add(pool.submit(_work, shard))
        if len(waiting) >= limit:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    while waiting:
        done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
        yield from (future.result() for future in done)


def _start(parent: Connection, job: Job, plan: Plan) -> None:
    """Prepare a process of the pool, which then exits on Ctrl-C and when its parent process ends."""
    global _worker
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # Ctrl-C; the parent reports it
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _worker = cache(partial(Worker, job, plan))  # not made here, where an exception would end the process


def _end_with(parent: Connection) -> None:
    try:
        parent.recv()
    except (EOFError, OSError):
        os._exit(1)


def _work(shard: Any) -> Part:
    return _worker()(shard)

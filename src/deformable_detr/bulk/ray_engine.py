"""The engine for a Ray cluster: Ray Data runs the shards on a pool of workers.

A shard is one block, and a worker returns its part as one row. Only the driver writes to the output folder:
workers need access to the model and the pictures only, and nothing is written twice if Ray repeats a shard.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from ..errors import UserError, WorkerLostError
from ..words import one_line
from .job import Job
from .libraries import library
from .plan import Plan
from .table import Counts, Part
from .worker import Worker


class RayWorker:
    """A worker that Ray Data's `map_batches` can call.

    The message of a `UserError` is returned in the column `failure`. If the error were raised, Ray would wrap
    it, and would keep restarting a worker that cannot load its model.
    """

    def __init__(self, job: Job, plan: Plan):
        self._failure = ""
        try:
            self._worker = Worker(job, plan)
        except UserError as error:
            self._failure = str(error)

    def __call__(self, shard: Any) -> Any:
        part = Part("", b"", Counts(0, 0, 0))
        failure = self._failure
        if not failure:
            try:
                part = self._worker(shard)
            except UserError as error:
                failure = str(error)
        row = {"name": part.name, "content": part.content, **asdict(part.counts), "failure": failure}
        return library("pyarrow").table({name: [value] for name, value in row.items()})


def run_on_ray(
    job: Job, plan: Plan, shards: Iterable[Any], workers: int, gpus_per_worker: float, address: str | None
) -> Generator[Part]:
    """Yield the parts of the shards as the workers finish them, in any order.

    Args:
        workers: the number of workers, each with a detector and `job.threads` processor cores.
        gpus_per_worker: the number of GPUs that Ray gives to each worker; it may be a fraction.
        address: the address of a running cluster; None starts one on this machine. It is ignored if this
            process is already connected to a cluster.

    Raises:
        UserError: if Ray is not installed, there is no cluster at `address`, or a worker fails with a
            `UserError`, for example because it cannot load the model.
        WorkerLostError: if Ray cannot replace a worker that was killed.
    """
    ray = library("ray")
    library("ray.data")
    with _cluster(ray, address, workers * job.threads):
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        dataset = ray.data.from_arrow_refs([ray.put(shard) for shard in shards]).map_batches(
            RayWorker,
            fn_constructor_args=(job, plan),
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2),
            num_cpus=job.threads,
            num_gpus=gpus_per_worker,
        )
        batches = iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
        try:
            for batch in batches:
                for row in batch.to_pylist():
                    if failure := row.pop("failure"):
                        raise UserError(failure)
                    name, content = row.pop("name"), row.pop("content")
                    yield Part(name, content, Counts(**row))
        except ray.exceptions.RayActorError as error:
            raise WorkerLostError(
                "Ray has lost workers and could not replace them: the finished parts are written; repeat the "
                "command to continue."
            ) from error


@contextmanager
def _cluster(ray: Any, address: str | None, cpus: int) -> Iterator[None]:
    """Connect to a cluster, and disconnect at the end. A connection that this process already has is kept."""
    if ray.is_initialized():
        yield
        return
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # Ray would report its use over the network
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its C++ code writes to the terminal
    os.environ.setdefault("RAY_worker_niceness", "0")  # the niceness of local workers; Ray's default is 15
    logging.getLogger("ray").setLevel(logging.ERROR)
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address is None:
            ray.init(num_cpus=max(cpus, os.cpu_count() or 1), include_dashboard=False, **quiet)
        else:
            ray.init(address, **quiet)
    except Exception as error:  # among them ConnectionError, ValueError and RuntimeError
        reason = one_line(error)[:300]
        raise UserError(
            f"there is no Ray cluster at {address or 'this machine'} ({reason}): start one with `ray start "
            "--head`, or leave out --ray-address to start one here."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()

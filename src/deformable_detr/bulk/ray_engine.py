"""The engine for a Ray cluster: Ray Data runs the shards on a pool of workers.

A shard is one block, and a worker returns its part as one row. Only the driver writes to the output folder:
workers need access to the model and the pictures only, and nothing is written twice if Ray repeats a shard.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
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

CONNECT_S = 5.0  # the maximum time to reach a cluster's address


def check_address(address: str) -> None:
    """Raise a `UserError` if nothing listens at the address of a cluster; Ray would retry for 13 minutes.

    Addresses without a port, such as `auto`, are left to Ray.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except (OSError, OverflowError) as error:  # a port above 65535 is an OverflowError
        raise _no_cluster(address, error) from error


def _no_cluster(address: str | None, error: Exception) -> UserError:
    reason = one_line(error)[:300]
    if address is None:
        return UserError(f"Ray cannot be started on this machine ({reason}): see its log in /tmp/ray.")
    return UserError(
        f"there is no Ray cluster at {address} ({reason}): correct --ray-address, or leave it out to start a "
        "cluster here; set RAY_AUTH_MODE=token if the cluster demands a token."
    )


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
        workers: the maximum number of workers, each with a detector and `job.threads` processor cores.
        gpus_per_worker: the number of GPUs that Ray gives to each worker; it may be a fraction.
        address: the address of a running cluster; None starts one on this machine. It is ignored if this
            process is already connected to a cluster.

    Raises:
        UserError: if Ray is not installed, there is no cluster at `address`, or a worker fails with a
            `UserError`, for example because it cannot load the model or a source has disappeared.
        WorkerLostError: if Ray cannot replace a worker that was killed.
    """
    _set_environment(address)
    ray = library("ray")
    library("ray.data")
    with _cluster(ray, address, workers * job.threads):
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        blocks = [ray.put(shard) for shard in shards]
        dataset = ray.data.from_arrow_refs(blocks).map_batches(
            RayWorker,
            fn_constructor_args=(job, plan),
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(
                size=min(workers, max(1, len(blocks))), max_tasks_in_flight_per_actor=2
            ),
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


def _set_environment(address: str | None) -> None:
    """Set Ray's environment variables, some of which Ray reads when it is imported."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # Ray would report its use over the network
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its C++ code writes to the terminal
    os.environ.setdefault("RAY_worker_niceness", "0")  # the niceness of local workers; Ray's default is 15
    if address is not None:
        # If another program listens there, Ray tries once for 16 s, instead of twenty times for 40 s.
        os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "1")
        os.environ.setdefault("RAY_py_gcs_connect_timeout_s", "5")


@contextmanager
def _cluster(ray: Any, address: str | None, cpus: int) -> Iterator[None]:
    """Connect to a cluster, and disconnect at the end. A connection that this process already has is kept.

    If `address` is None, a cluster is started on this machine with at least `cpus` processor cores.

    Raises:
        UserError: if there is no cluster at `address`, or Ray cannot be started on this machine.
    """
    if ray.is_initialized():
        yield
        return
    logging.getLogger("ray").setLevel(logging.ERROR)
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        try:
            if address is None:
                ray.init(num_cpus=max(cpus, os.cpu_count() or 1), include_dashboard=False, **quiet)
            else:
                ray.init(address, **quiet)
        except Exception as error:  # among them ConnectionError, ValueError and RuntimeError
            raise _no_cluster(address, error) from error
        yield
    finally:
        ray.shutdown()
        # Ray's handler would stay. In threads other than the main one, Ray sets none.
        if signal.getsignal(signal.SIGTERM) is not handler:
            signal.signal(signal.SIGTERM, handler)

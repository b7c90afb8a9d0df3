"""`predict --format parquet`: write tables of detections for the sources that a user names."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..config import to_dict
from ..detections import ClassTable
from ..errors import UserError
from ..files import replacing, write_json
from ..inference.detector import Detector, check_options
from ..inference.devices import choose_device
from ..inference.tta import tta_scales, views_of
from ..prediction.outputs import MADE_BY
from ..prediction.tiling import Tiling
from ..run_folder.lock import locked
from ..run_folder.names import PREDICTION_LOCK_FILE
from ..system.threads import limited_threads
from .job import Job
from .libraries import library
from .local import run_here, run_processes
from .plan import MANIFEST_FILE, Plan, make_plan
from .ray_engine import check_address, run_on_ray
from .sources import MEMORY, absolute, check_sources
from .table import Counts, Part, read_counts

MOST = 1_000_000  # the maximum number of threads, and of pictures in a shard
Progress = Callable[[int, int, int], None]  # finished pictures, all pictures, failures so far


@dataclass(frozen=True)
class TablesReport:
    """The results of a run.

    Attributes:
        counts: the numbers of pictures, detections and errors in all parts.
        parts: the number of parts, including those of an earlier run.
        kept: the number of parts that an earlier run had written.
        manifest: manifest.json, which lists the parts.
    """

    counts: Counts
    parts: int
    kept: int
    manifest: Path


@dataclass(frozen=True)
class Engine:
    """The way in which the shards are computed; it does not change the rows.

    Attributes:
        name: `local`, or `ray` for a Ray cluster.
        workers: the number of workers, each with a detector.
        gpus_per_worker: the number of GPUs that Ray gives to each worker; it may be a fraction.
        ray_address: the address of a Ray cluster; None starts one on this machine.
    """

    name: Literal["local", "ray"] = "local"
    workers: int = 1
    gpus_per_worker: float = 0.0
    ray_address: str | None = None

    def check(self, device: str, sources: Sequence[str]) -> None:
        """Raise a `UserError` if an option is out of range, or does not fit the others or a source.

        Sources in memory (`memory://`) need a single local worker. A cluster must listen at `ray_address`.
        """
        if self.workers < 1:
            raise UserError(f"workers must be at least 1, not {self.workers}.")
        if self.gpus_per_worker < 0:
            raise UserError(f"gpus_per_worker must not be negative, not {self.gpus_per_worker}.")
        if self.name == "local":
            for option, given in (
                ("--gpus-per-worker", self.gpus_per_worker),
                ("--ray-address", self.ray_address),
            ):
                if given:
                    raise UserError(f"{option} is for Ray: add --engine ray, or leave it out.")
        elif (device != "cpu") != (self.gpus_per_worker > 0) and device != "auto":
            raise UserError(
                f"--device {device} does not fit --gpus-per-worker {self.gpus_per_worker:g}: a worker of "
                "Ray sees only the GPUs that it is given."
            )
        if self.in_processes and any(source.startswith(MEMORY) for source in sources):
            raise UserError(f"{MEMORY} exists in one process only: use one local worker, or another source.")
        if self.ray_address is not None:
            check_address(self.ray_address)

    @property
    def in_processes(self) -> bool:
        return self.name == "ray" or self.workers > 1

    def device(self, device: str) -> str:
        """Return the device of each worker.

        With Ray, it is `cuda` if the workers have GPUs and `cpu` otherwise, whatever `device` is.

        Raises:
            UserError: if the workers are local, and this machine does not have `device`, or several workers
                would share a GPU.
        """
        if self.name == "ray":
            return "cuda" if self.gpus_per_worker else "cpu"
        chosen = choose_device(device)
        if chosen.type != "cpu" and self.workers > 1:
            raise UserError(
                f"--workers {self.workers} would share one GPU: use one worker, or --engine ray with "
                "--gpus-per-worker."
            )
        return str(chosen)

    def run(self, job: Job, plan: Plan, shards: Iterator[Any], detector: Detector | None) -> Generator[Part]:
        if self.name == "ray":
            return run_on_ray(job, plan, shards, self.workers, self.gpus_per_worker, self.ray_address)
        if detector is None:
            return run_processes(job, plan, shards, self.workers)
        return run_here(job, plan, shards, detector)


def predict_tables(
    model: str | Path,
    sources: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    threshold: float | None = None,
    classes: Sequence[str] | None = None,
    class_thresholds: Mapping[str, float] | None = None,
    tiling: Tiling | None = None,
    max_detections: int | None = None,
    batch_size: int = 4,
    device: str = "auto",
    dtype: str | None = None,
    max_pixels: int | None = None,
    tta: bool | Sequence[float] = False,
    engine: Engine | None = None,
    threads: int = 1,
    shard_size: int = 500,
    progress: Progress | None = None,
) -> TablesReport:
    """Find objects in any number of pictures and write tables of the detections.

    A call with the same arguments continues a run that was stopped; only `engine` and `progress` may differ.

    Args:
        model: anything that `load` accepts; all workers must be able to load it.
        sources: pictures, folders, patterns, lists of pictures (.txt, .lst, .parquet), `demo`, or URLs of
            pictures, folders and lists; bulk/sources.py describes them.
        output: the folder for the parts (`part-*.parquet`, see bulk/table.py) and for `manifest.json`, which
            is written last. The folder must be on this machine or on a disk that the machine has mounted.
        engine: the way in which the shards are computed; None uses one detector in this process.
        threads: the number of threads of each worker.
        shard_size: the number of pictures in a part.
        progress: a function that is called with the numbers of finished pictures, all pictures and failures.
        threshold, classes, class_thresholds, tiling, max_detections, batch_size, device, dtype, max_pixels,
            tta: as for `predict`.

    Returns:
        The counts of pictures, detections and errors in all parts, and the path of `manifest.json`.

    Raises:
        UserError: if the model cannot be loaded, a class is unknown, the device or the extra [scale] is
            missing, there is no Ray cluster at the address, an option is out of range or does not fit the
            others, a source does not exist, contains no picture or disappears, the model's output is not
            finite, `output` cannot be written, belongs to a run with other settings or has damaged files, or
            another process is writing there. Finished parts remain.
        WorkerLostError: if a worker process is killed and the engine cannot replace it.
    """
    engine = engine or Engine()
    given = [sources] if isinstance(sources, str | Path) else sources
    places = [absolute(source) for source in given]
    engine.check(device, places)
    _check(threshold, max_detections, batch_size, threads, shard_size, tta)
    check_sources(places)
    library("pyarrow")
    job = Job(
        model=str(model) if str(model) == "demo" or not Path(model).exists() else str(Path(model).absolute()),
        device=engine.device(device),
        dtype=dtype or "fp32",
        threshold=None if threshold is None else float(threshold),
        classes=None if classes is None else tuple(classes),
        class_thresholds=None if class_thresholds is None else dict(class_thresholds),
        tiling=tiling,
        max_detections=max_detections,
        batch_size=batch_size,
        max_pixels=max_pixels,
        tta=tta if isinstance(tta, bool) else tuple(tta),
        threads=threads,
    )
    folder = Path(output)
    with locked(folder, PREDICTION_LOCK_FILE, "prediction"), limited_threads(threads):
        return _run(job, engine, places, folder, shard_size, progress)


def _check(
    threshold: float | None,
    max_detections: int | None,
    batch_size: int,
    threads: int,
    shard_size: int,
    tta: bool | Sequence[float],
) -> None:
    check_options(threshold, max_detections, batch_size)
    if scales := tta_scales(tta):
        views_of(scales)
    for name, value in (("threads", threads), ("shard_size", shard_size)):
        if not 1 <= value <= MOST:
            raise UserError(f"{name} must be at least 1 and at most {MOST:,}, not {value}.")


def _run(
    job: Job, engine: Engine, sources: list[str], output: Path, shard_size: int, progress: Progress | None
) -> TablesReport:
    # Ray's driver needs no GPU: it only identifies the model.
    loaded = (replace(job, device="cpu", dtype="fp32") if engine.name == "ray" else job).load()
    job.finder(loaded)  # refuses unknown classes
    plan = make_plan(output, sources, shard_size, job.identity(loaded))
    classes = loaded.classes
    detector = None if engine.in_processes else loaded
    del loaded
    parts, missing = _written_parts(output, plan)
    kept = len(parts) - len(missing)
    if missing:
        (output / MANIFEST_FILE).unlink(missing_ok=True)  # it states that the run is complete
        tally = _Tally(plan.pictures, progress)
        tally.add(*(counts for counts in parts.values() if counts is not None))
        with closing(engine.run(job, plan, plan.shards(missing), detector)) as finished:
            for part in finished:
                with replacing(output / part.name) as draft:
                    draft.write_bytes(part.content)
                parts[part.name] = part.counts
                tally.add(part.counts)
    total = _write_manifest(output, job, plan, classes, parts)
    return TablesReport(total, len(parts), kept, output / MANIFEST_FILE)


def _written_parts(output: Path, plan: Plan) -> tuple[dict[str, Counts | None], Sequence[int]]:
    """Return the counts of each part by name (None for missing parts), and the indices of the missing parts.

    The index of a part is that of its shard.
    """
    parts: dict[str, Counts | None] = {}
    missing = array("q")
    for index, shard in enumerate(plan.shards()):
        name = plan.part_name(shard)
        parts[name] = read_counts(output / name)
        if parts[name] is None:
            missing.append(index)
    return parts, missing


class _Tally:
    """A count of the finished pictures and of the failures, which is reported to `progress`."""

    def __init__(self, pictures: int, progress: Progress | None):
        self._pictures, self._progress = pictures, progress
        self._done = self._failed = 0

    def add(self, *parts: Counts) -> None:
        self._done += sum(part.pictures for part in parts)
        self._failed += sum(part.errors for part in parts)
        if self._progress is not None:
            self._progress(self._done, self._pictures, self._failed)


def _write_manifest(
    output: Path, job: Job, plan: Plan, classes: ClassTable, parts: Mapping[str, Counts | None]
) -> Counts:
    """Write manifest.json, which states that the run is complete, and return the sum of the counts.

    Raises:
        UserError: if the parts do not contain as many pictures as the plan.
    """
    rows = [{"name": name, **asdict(counts)} for name, counts in parts.items() if counts is not None]
    total = Counts(*(sum(row[name] for row in rows) for name in ("pictures", "detections", "errors")))
    if total.pictures != plan.pictures:
        raise UserError(
            f"{output} was begun with {plan.pictures} pictures, but its parts have {total.pictures}: a file "
            "in it was changed; choose another --output."
        )
    content = {
        "made_by": MADE_BY,
        **plan.settings,
        "model_name": job.model,
        "classes": to_dict(classes),
        "counts": asdict(total),
        "parts": rows,
    }
    write_json(output / MANIFEST_FILE, content)
    return total

"""The small-scale runs, one after the other, from a file that lists them (experiments/paper/queue.yaml).

    python -m experiments.paper queue experiments/paper/queue.yaml --output runs/paper --results FOLDER

A finished run leaves RESULTS/DATA-ROW-EPOCHSep-seedSEED.json with its curve, time, machine and command. A row
is one of tables 1 and 2 at the small scale, or one of the file's `variants`: a recipe with other settings.
Finished runs are not repeated, and a stopped run continues where it stopped. The run folders are where
`paper table1 --scale small --output OUTPUT/DATA --rebuild` looks for them.

A run in progress is locked (OUTPUT/locks), so any number of queues may work on one list: `--jobs N` starts N
queues, each with a share of the threads. With small models, two runs use two cores better than one run does.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout
from rich.console import Console

from deformable_detr.cli.options import Parser, add_device
from deformable_detr.config import RunConfig, override
from deformable_detr.data.drawn import generate
from deformable_detr.data.formats import read_split
from deformable_detr.errors import NonFiniteError, UserError
from deformable_detr.files import write_text
from deformable_detr.run_folder.names import METRICS_FILE
from deformable_detr.run_folder.reading import read_metrics
from deformable_detr.system.machine import cpu_model
from deformable_detr.words import one_line
from experiments.commands import add_output

from . import table1, table2
from .published import Published
from .rows import AP_NAMES, Row, Variant, read_run, require_data, run_folder

ROWS: dict[str, Row] = {row.name: row for row in (*table2.ROWS, *table1.ROWS)}
CPU_FILE = "cpu_seconds.jsonl"  # in a run folder: one row for each start whose process was not killed
_FIELDS = {"row", "data", "epochs", "seeds", "evaluate_every", "minutes"}
_DRAWN_FIELDS = {"train", "val", "image_size", "seed", "small_objects"}  # options of data.drawn.generate


@dataclass(frozen=True)
class QueuedRun:
    """One run of the file; `data` is the name of a data set in that file."""

    row: Row
    data: str
    epochs: int
    seed: int
    evaluate_every: int

    @property
    def name(self) -> str:
        return f"{self.data}-{self.row.name}-{self.epochs}ep-seed{self.seed}"

    @property
    def config(self) -> RunConfig:
        config = self.row.config("small", self.epochs, self.seed)
        return override(config, {"train.evaluate_every": self.evaluate_every})

    def folder(self, output: Path) -> Path:
        return run_folder(output / self.data, "small", self.row.run_name, self.epochs, self.seed)

    def lock(self, output: Path) -> FileLock:
        """Return the lock of the run's folder. Rows that train the same model share the folder."""
        return _lock(output, f"{self.data}-{self.folder(output).name}")


def add_arguments(parser: Parser) -> None:
    parser.argument("queue", "FILE", "A YAML file with data sets and runs.")
    add_output(parser, "run folders and drawn data")
    parser.option(
        "--results",
        str,
        "runs/paper/results",
        "The folder for one JSON file per finished run.",
        shown="FOLDER",
    )
    parser.option("--jobs", int, 1, "How many runs at a time, each with a share of the cores.")
    parser.flag("--list", "Show what is finished and run nothing.")
    add_device(parser)


def run(arguments: Namespace) -> None:
    if arguments.jobs < 1:
        raise UserError(f"--jobs must be at least 1, not {arguments.jobs}.")
    console, output, results = Console(), Path(arguments.output), Path(arguments.results)
    data, runs = read_queue(Path(arguments.queue))
    if arguments.jobs > 1 and not arguments.list:
        _run_jobs(arguments, console)
        return
    command = shlex.join(
        [
            "python",
            "-m",
            "experiments.paper",
            "queue",
            arguments.queue,
            "--output",
            str(output),
            "--results",
            str(results),
        ]
    )
    failed = []
    for each in runs:
        result = results / f"{each.name}.json"
        if arguments.list or result.is_file():
            _say(console, _state(each, result, output), each)
            continue
        try:
            with each.lock(output):
                if not result.is_file():
                    _say(console, "running", each)
                    source = _data_folder(data[each.data], output, each.data)
                    val, folder = read_split(source, "val"), each.folder(output)
                    before = read_run(folder)
                    if before is not None:
                        require_data(before, val)
                    with _processor_time(folder):
                        each.row.train(source, each.config, folder, arguments.device)
                    content = json.dumps(result_of(each, folder, command), indent=1)
                    write_text(result, content + "\n")
        except Timeout:
            _say(console, "in work", each)
        except NonFiniteError as error:  # only this run failed; the others continue
            console.print(f"failed    {each.name}: {error}", markup=False, highlight=False, soft_wrap=True)
            failed.append(each.name)
    if failed:
        raise UserError(f"failed: {', '.join(failed)}; their folders in {output} show where, remove them.")


@contextmanager
def _processor_time(folder: Path) -> Iterator[None]:
    """Append the processor time that this process and its ended children spend in the block to CPU_FILE."""
    start = sum(os.times()[:4])
    try:
        yield
    finally:
        if folder.is_dir():
            with (folder / CPU_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"seconds": round(sum(os.times()[:4]) - start, 3)}) + "\n")


def _run_jobs(arguments: Namespace, console: Console) -> None:
    """Run the same queue in several processes, which share the list through its locks."""
    threads = max(1, (os.cpu_count() or 1) // arguments.jobs)
    command = [sys.executable, "-m", "experiments.paper", "queue", arguments.queue]
    for option in ("output", "results", "device"):
        command += [f"--{option}", getattr(arguments, option)]
    logs = Path(arguments.output) / "jobs"
    logs.mkdir(parents=True, exist_ok=True)
    children: list[subprocess.Popen[bytes]] = []
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)  # the same effect as Ctrl-C
    try:
        for job in range(1, arguments.jobs + 1):
            log = logs / f"{job}.log"
            with log.open("ab") as written:
                children.append(
                    subprocess.Popen(
                        command,
                        stdout=written,
                        stderr=subprocess.STDOUT,
                        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
                    )
                )
            console.print(f"job {job}, threads: {threads}, log: {log}", highlight=False, soft_wrap=True)
        codes = [child.wait() for child in children]
    finally:
        for child in children:  # the stopped processes save the state of their runs
            child.terminate()
        for child in children:
            child.wait()
        signal.signal(signal.SIGTERM, previous)
    if any(codes):
        raise UserError(f"a job of the queue has failed: {logs}/*.log say why; the others' results stand.")


def _lock(output: Path, name: str, timeout: float = 0) -> FileLock:
    """Return the lock of a run or a data set. It is released when the process ends, even on a crash; the
    empty lock file remains."""
    folder = output / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{name}.lock", timeout=timeout)


def _state(each: QueuedRun, result: Path, output: Path) -> str:
    if result.is_file():
        return "finished"
    if not each.folder(output).exists():  # the run has not started, so there is no lock to try
        return "to do"
    try:
        with each.lock(output):
            return "to do"
    except Timeout:
        return "in work"


def _say(console: Console, state: str, each: QueuedRun) -> None:
    console.print(f"{state:<8}  {each.name}", highlight=False, soft_wrap=True)


def read_queue(path: Path) -> tuple[dict[str, Any], list[QueuedRun]]:
    """Return the data sets by name, and the runs in the order of the file.

    Raises:
        UserError: if the file is invalid; the message states what is wrong.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        data, entries = dict(content["data"]), list(content["runs"])
        variants = dict(content.get("variants", {}))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        why = one_line(error)
        raise UserError(f"{path} is not a queue of runs ({why}): it needs `data` and `runs`.") from error
    for name, description in data.items():
        _check_data(name, description, path)
    rows = {**ROWS, **{name: _variant(name, entry, path) for name, entry in variants.items()}}
    runs = [each for entry in entries for each in _queued(entry, data, rows, path)]
    names = [each.name for each in runs]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{path} lists {name} more than once: leave one.")
    return data, runs


def _check_data(name: str, description: Any, path: Path) -> None:
    if isinstance(description, str):
        return
    what = f"{path}: the data set {name} must be a folder, or numbers to draw one by"
    if not isinstance(description, Mapping):
        raise UserError(f"{what}, not {description!r}.")
    unknown = description.keys() - _DRAWN_FIELDS
    if unknown:
        raise UserError(f"{what} ({', '.join(sorted(_DRAWN_FIELDS))}), not {', '.join(map(str, unknown))}.")
    size = description.get("image_size", [240, 320])
    numbers = [value for field, value in description.items() if field not in ("image_size", "small_objects")]
    if (
        not isinstance(size, list)
        or len(size) != 2
        or not all(type(each) is int for each in [*size, *numbers])
    ):
        raise UserError(f"{what}: `image_size` [height, width], the others whole numbers.")


def _variant(name: str, entry: Any, path: Path) -> Variant:
    if not isinstance(entry, Mapping) or "recipe" not in entry or entry.keys() - {"recipe", "settings"}:
        raise UserError(f"{path}: the variant {name} needs a recipe and may have settings, not {entry!r}.")
    row = Variant(
        name, str(entry["recipe"]), 0, Published(math.nan), variant=name, settings=entry.get("settings", {})
    )
    try:
        row.config("small", None, 0)
    except UserError as error:
        raise UserError(f"{path}: the variant {name}: {error}") from error
    return row


def _queued(entry: Any, data: Mapping[str, Any], rows: Mapping[str, Row], path: Path) -> Iterator[QueuedRun]:
    if not isinstance(entry, Mapping):
        raise UserError(f"{path}: {entry!r} is not a run: it needs row, data, epochs and seeds.")
    missing = {"row", "data", "epochs", "seeds"} - entry.keys()
    unknown = entry.keys() - _FIELDS
    if missing or unknown:
        words = "misses" if missing else "has unknown fields"
        fields = ", ".join(sorted(map(str, missing or unknown)))
        raise UserError(f"{path}: the run {dict(entry)} {words} {fields}.")
    if str(entry["row"]) not in rows:
        raise UserError(f"{path}: there is no row {entry['row']}: choose among {', '.join(rows)}.")
    if str(entry["data"]) not in data:
        raise UserError(f"{path}: there is no data set {entry['data']} among {', '.join(map(str, data))}.")
    epochs, every, seeds = entry["epochs"], entry.get("evaluate_every", 1), entry["seeds"]
    if not isinstance(seeds, list) or not all(type(seed) is int for seed in seeds):
        raise UserError(f"{path}: the run {dict(entry)} needs a list of whole numbers as its seeds.")
    if type(epochs) is not int or type(every) is not int or min(epochs, every) < 1:
        raise UserError(f"{path}: the run {dict(entry)} needs epochs and evaluate_every of at least 1.")
    for seed in seeds:
        yield QueuedRun(rows[entry["row"]], entry["data"], epochs, seed, every)


def _data_folder(description: str | Mapping[str, Any], output: Path, name: str) -> Path:
    """Return the folder of a data set; a drawn data set (data/drawn.py) is drawn once.

    Raises:
        UserError: if the existing data set was drawn from another description.
    """
    if isinstance(description, str):
        return Path(description)
    drawn, said = output / "data" / name, output / "data" / f"{name}.yaml"
    with _lock(output, f"data-{name}", timeout=-1):
        if not drawn.exists():
            fields = dict(description)
            if "image_size" in fields:
                fields["image_size"] = tuple(fields["image_size"])
            write_text(said, yaml.safe_dump(dict(description)))
            generate(drawn, **fields)
        elif said.is_file() and yaml.safe_load(said.read_text(encoding="utf-8")) != description:
            raise UserError(f"{drawn} was drawn by another description ({said}): choose another --output.")
    return drawn


def _rows_of(path: Path) -> list[dict[str, Any]]:
    return (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    )


def result_of(queued: QueuedRun, folder: Path, command: str) -> dict[str, Any]:
    """Return the JSON of a finished run; `command` repeats the run."""
    run = read_run(folder)
    assert run is not None
    evaluations = [row for row in read_metrics(folder / METRICS_FILE) if row["kind"] == "evaluation"]
    return {
        "row": queued.row.name,
        "recipe": queued.row.recipe,
        "data": queued.data,
        "epochs": queued.epochs,
        "seed": queued.seed,
        "command": command,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": cpu_model(),
        **({"settings": dict(queued.row.settings)} if isinstance(queued.row, Variant) else {}),
        "training_hours": round(run.hours, 6),
        "cpu_seconds": round(sum(row["seconds"] for row in _rows_of(folder / CPU_FILE)), 1),
        **{name: run.metrics.get(name) for name in AP_NAMES},
        "curve": [
            {"epoch": row["epoch"] + 1, **{name: row[name] for name in AP_NAMES}} for row in evaluations
        ],
    }

"""The small-scale runs, one after the other, from a file that lists them (benchmarks/paper/queue.yaml).

    deformable-detr paper queue benchmarks/paper/queue.yaml --output runs/paper --results FOLDER

A finished run leaves RESULTS/DATA-ROW-EPOCHSep-seedSEED.json: its curve, its time, what it ran on, its
command. What is finished is not run again, and a stopped run goes on where it was. The run folders lie where
`paper table1 --scale small --output OUTPUT/DATA --rebuild` looks for them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from ..config import RunConfig, override
from ..data.synthetic import generate
from ..errors import UserError
from ..files import write_text
from ..training_log import METRICS_FILE, read_metrics
from . import table1, table2
from .rows import AP_NAMES, Row, read_run, run_folder

ROWS: dict[str, Row] = {row.name: row for row in (*table2.ROWS, *table1.ROWS)}
_FIELDS = {"row", "data", "epochs", "seeds", "evaluate_every", "minutes"}


@dataclass(frozen=True)
class QueuedRun:
    """One run of the file. `data`: the name of a data set there."""

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
        return run_folder(output / self.data, "small", self.row.name, self.epochs, self.seed)


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("queue", metavar="FILE", type=str, help="YAML: data sets and runs")
    parser.add_argument("--output", type=str, default="runs/paper", help="run folders and drawn data")
    parser.add_argument("--results", type=str, default="runs/paper/results", help="one JSON per finished run")
    parser.add_argument("--list", action="store_true", help="say what is finished, run nothing")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu or cuda")


def run(arguments: Namespace) -> None:
    console, output, results = Console(), Path(arguments.output), Path(arguments.results)
    data, runs = read_queue(Path(arguments.queue))
    for each in runs:
        result = results / f"{each.name}.json"
        if result.is_file() or arguments.list:
            state = "finished" if result.is_file() else "to do"
            console.print(f"{state:<8}  {each.name}", highlight=False, soft_wrap=True)
            continue
        console.print(f"running   {each.name}", highlight=False, soft_wrap=True)
        source = _data_folder(data[each.data], output / "data" / each.data)
        folder = each.folder(output)
        each.row.train(source, each.config, folder, arguments.device)
        write_text(result, json.dumps(_result(each, folder, arguments.queue), indent=1) + "\n")


def read_queue(path: Path) -> tuple[dict[str, Any], list[QueuedRun]]:
    """The data sets by name, and the runs in the order of the file.

    Raises:
        UserError: naming what is wrong in the file.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        data, entries = content["data"], content["runs"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a queue of runs ({error}): it needs `data` and `runs`.") from error
    return data, [each for entry in entries for each in _queued(entry, data, path)]


def _queued(entry: Mapping[str, Any], data: Mapping[str, Any], path: Path) -> Iterator[QueuedRun]:
    missing = {"row", "data", "epochs", "seeds"} - entry.keys()
    unknown = entry.keys() - _FIELDS
    if missing or unknown:
        words = "misses" if missing else "has unknown fields"
        raise UserError(f"{path}: the run {dict(entry)} {words} {', '.join(sorted(missing or unknown))}.")
    if entry["row"] not in ROWS:
        raise UserError(f"{path}: there is no row {entry['row']}: choose among {', '.join(ROWS)}.")
    if entry["data"] not in data:
        raise UserError(f"{path}: there is no data set {entry['data']} among {', '.join(data)}.")
    for seed in entry["seeds"]:
        yield QueuedRun(
            ROWS[entry["row"]], entry["data"], entry["epochs"], seed, entry.get("evaluate_every", 1)
        )


def _data_folder(description: str | Mapping[str, Any], drawn: Path) -> Path:
    """A folder as it is, or a drawn data set (data/synthetic.py), drawn once."""
    if isinstance(description, str):
        return Path(description)
    if not drawn.exists():
        size = tuple(description["image_size"])
        generate(drawn, **{**description, "image_size": size})
    return drawn


def _result(queued: QueuedRun, folder: Path, queue: str) -> dict[str, Any]:
    run = read_run(folder)
    assert run is not None
    evaluations = [row for row in read_metrics(folder / METRICS_FILE) if row["kind"] == "evaluation"]
    return {
        "row": queued.row.name,
        "recipe": queued.row.recipe,
        "data": queued.data,
        "epochs": queued.epochs,
        "seed": queued.seed,
        "command": f"deformable-detr paper queue {queue}",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "training_hours": round(run.hours, 4),
        **{name: run.metrics.get(name) for name in AP_NAMES},
        "curve": [
            {"epoch": row["epoch"] + 1, **{name: row[name] for name in AP_NAMES}} for row in evaluations
        ],
    }

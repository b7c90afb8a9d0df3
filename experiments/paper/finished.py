"""The finished runs of a queue, read from their JSON files and grouped over seeds."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from deformable_detr.errors import UserError

from . import table1, table2
from .queue import ROWS, QueuedRun
from .rows import AP_NAMES


@dataclass(frozen=True)
class Result:
    """A finished run; `curve` maps an epoch (from 1) to its metrics.

    `cpu_minutes` includes the evaluations; it is None for older results.
    """

    data: str
    row: str
    epochs: int
    seed: int
    hours: float
    cpu_minutes: float | None
    metrics: Mapping[str, float]
    curve: Mapping[int, Mapping[str, float]]


@dataclass(frozen=True)
class Experiment:
    """Runs that differ only in their seeds."""

    data: str
    row: str
    epochs: int
    runs: tuple[Result, ...]

    @property
    def label(self) -> str:
        return ROWS[self.row].label

    def values(self, metric: str) -> list[float]:
        """Return the metric of each run, in the order of seeds, without runs that had no objects for it."""
        return [run.metrics[metric] for run in self.runs if run.metrics[metric] >= 0]

    @property
    def hours(self) -> float:
        return fmean(run.hours for run in self.runs)

    def curve(self, metric: str) -> dict[int, float]:
        """Return the mean over seeds, at the epochs at which all of them were evaluated."""
        epochs = sorted(set.intersection(*(set(run.curve) for run in self.runs)))
        return {epoch: fmean(run.curve[epoch][metric] for run in self.runs) for epoch in epochs}


def read_results(folder: Path) -> list[Result]:
    """Read the results in the order of their file names.

    Raises:
        UserError: if the folder does not exist, or a file (which the message names) is not a result.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: name the one that `paper queue --results` wrote.")
    return [_read_result(path) for path in sorted(folder.glob("*-seed*.json"))]


def _read_result(path: Path) -> Result:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        result = Result(
            data=str(content["data"]),
            row=str(content["row"]),
            epochs=_whole(content, "epochs"),
            seed=_whole(content, "seed"),
            hours=float(content["training_hours"]),
            cpu_minutes=float(content["cpu_seconds"]) / 60 if "cpu_seconds" in content else None,
            metrics={name: float(content[name]) for name in AP_NAMES},
            curve={
                _whole(row, "epoch"): {name: float(row[name]) for name in AP_NAMES}
                for row in content["curve"]
            },
        )
        if result.row not in ROWS and "settings" not in content:
            raise ValueError(f"there is no row {result.row}")
        if result.epochs < 1 or result.hours <= 0 or result.epochs not in result.curve:
            raise ValueError("nothing was trained, or its end not evaluated")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not the result of a queued run ({error}): take it out.") from error
    return result


def _whole(content: Mapping[str, Any], name: str) -> int:
    number = content[name]
    if type(number) is not int:
        raise TypeError(f"{name} is {number!r}")
    return number


def group(results: Iterable[Result]) -> list[Experiment]:
    """Group results by data set, then by row (of tables 1 and 2 first, then variants), then by epochs."""
    groups: dict[tuple[str, str, int], list[Result]] = defaultdict(list)
    for result in results:
        groups[result.data, result.row, result.epochs].append(result)
    order = [row.name for row in (*table1.ROWS, *table2.ROWS)]
    rank = {name: place for place, name in reversed(list(enumerate(order)))}
    keys = sorted(groups, key=lambda key: (key[0], rank.get(key[1], len(order)), key[1], key[2]))
    return [Experiment(*key, tuple(sorted(groups[key], key=lambda run: run.seed))) for key in keys]


def missing(experiments: Sequence[Experiment], queued: Sequence[QueuedRun]) -> list[str]:
    """Return the names of queued runs that have no result."""
    done = {(run.data, run.row, run.epochs, run.seed) for each in experiments for run in each.runs}
    return [each.name for each in queued if (each.data, each.row.name, each.epochs, each.seed) not in done]

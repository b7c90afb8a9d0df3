"""Readers of a run folder's settings, losses, evaluations, and starts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import RunConfig, read_config, settings_of
from ..config import recipe as recipe_of
from ..errors import UserError
from ..files import check_readable
from .names import METRICS_FILE, RUN_CONFIG_FILE, STARTS_FILE


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a `metrics.jsonl`, without the incomplete row that a crash may leave at its end.

    Raises:
        UserError: if there is no such file, or a line cannot be read. The message names the line.
    """
    if not path.is_file():
        raise UserError(f"there is no {path}: name a run folder or its metrics.jsonl.")
    check_readable(path)
    # Bytes that are not UTF-8 are no JSON, so that their line is named below.
    whole, _, _ = path.read_text(encoding="utf-8", errors="backslashreplace").rpartition("\n")
    rows = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            row = json.loads(line)
            if row["kind"] not in ("train", "evaluation"):
                raise ValueError(f"unknown kind {row['kind']}")
            if type(row["step"]) is not int or type(row["epoch"]) is not int:
                raise ValueError("step and epoch must be integers")
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}, line {number} is not a row of a training run ({error}): remove it."
            ) from error
        rows.append(row)
    return rows


def read_starts(folder: Path) -> tuple[dict[str, Any], ...]:
    """Read one row for each start of the run in `folder`.

    The result is empty for runs of older versions, which did not write such rows; some wrote rows without
    `data`.

    Raises:
        UserError: if the file cannot be read. The message names it.
    """
    path = folder / STARTS_FILE
    if not path.is_file():
        return ()
    try:
        return tuple(dict(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}): remove it from the run folder.") from error


@dataclass(frozen=True)
class History:
    """The settings of a run, and the rows of its log.

    Attributes:
        folder: the run folder.
        config: the run's configuration.
        updates: the rows of losses, each about several updates.
        evaluations: one row per evaluation.
        starts: the rows of `read_starts`.
    """

    folder: Path
    config: RunConfig
    updates: tuple[Mapping[str, Any], ...]
    evaluations: tuple[Mapping[str, Any], ...]
    starts: tuple[Mapping[str, Any], ...]

    @property
    def seconds(self) -> float | None:
        """The seconds of training, without evaluations.

        None if there are no rows of losses, or if one of them does not state its seconds.
        """
        if not all("seconds" in row for row in self.updates) or not self.updates:
            return None
        return float(sum(row["seconds"] for row in self.updates))

    @property
    def unfinished(self) -> bool:
        """True if epochs remain to be trained; False if there are no updates, or if `max_steps` is set."""
        if not self.updates or self.config.train.max_steps is not None:
            return False
        return bool(self.updates[-1]["epoch"] + 1 < self.config.train.epochs)

    @property
    def best(self) -> Mapping[str, Any] | None:
        """The evaluation with the best AP, that of `checkpoints/best`; None if there are no evaluations.

        Among equals, it is the first one.
        """
        return max(self.evaluations, key=lambda row: row["AP"], default=None)


def read_history(folder: Path) -> History | None:
    """Read the history of a run; return None if `folder` is not a run folder.

    Raises:
        UserError: if a file cannot be read. The message names the file and the line or field.
    """
    if not (folder / RUN_CONFIG_FILE).is_file():
        return None
    rows = read_metrics(folder / METRICS_FILE) if (folder / METRICS_FILE).is_file() else []
    return History(
        folder,
        read_config(folder / RUN_CONFIG_FILE, RunConfig()),
        tuple(row for row in rows if row["kind"] == "train"),
        tuple(row for row in rows if row["kind"] == "evaluation"),
        read_starts(folder),
    )


@dataclass(frozen=True)
class Change:
    """A setting that differs from the recipe's: its path, and its values in the recipe and in the run."""

    path: str
    recipe: Any
    run: Any


def changes_from_recipe(config: RunConfig) -> list[Change]:
    """List the settings that differ from the recipe's, except `model.num_classes`, which the data determine.

    Raises:
        UserError: if there is no recipe with the name `config.recipe`.
    """
    of_recipe = recipe_of(config.recipe)
    return [
        Change(item.path, item.of(of_recipe), item.of(config))
        for item in settings_of(RunConfig)
        if item.of(config) != item.of(of_recipe) and item.path != "model.num_classes"
    ]

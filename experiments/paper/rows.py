"""Rows of the paper's tables: how they are trained, and how their results are read.

A row is trained into run folders, OUTPUT/runs/SCALE/RECIPE-EPOCHSep-seedSEED: ordinary runs, which resume
like any other. Tables are rebuilt from these folders alone, so that rows may be trained on different machines
and their folders combined. Rows that train the same model share their folders.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from deformable_detr.config import RunConfig, override, read_config, recipe
from deformable_detr.data.records import Split
from deformable_detr.detections import ClassTable
from deformable_detr.errors import UserError
from deformable_detr.inference.detector import Detector
from deformable_detr.inference.loading import new_checkpoint
from deformable_detr.run_folder.names import METRICS_FILE, RUN_CONFIG_FILE, STATE_FILE
from deformable_detr.run_folder.reading import read_metrics, read_starts
from deformable_detr.training import train

from .flops import Size, mean_multiply_adds, model_without_numbers
from .published import Published
from .small_scale import small

Scale = Literal["full", "small"]
AP_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")


@dataclass(frozen=True)
class Row(ABC):
    """One row of a table. `label` is the paper's name of the row; `epochs` is the length of the published
    schedule; `suffix` distinguishes rows of the same recipe."""

    label: str
    recipe: str
    epochs: int
    published: Published
    suffix: str = ""

    @property
    def name(self) -> str:
        """The row's name in commands and results."""
        return self.recipe + self.suffix

    @property
    def run_name(self) -> str:
        """The prefix of the names of the row's run folders."""
        return self.recipe

    @abstractmethod
    def base(self) -> RunConfig:
        """Return the published configuration."""

    @abstractmethod
    def train(self, data: Path, config: RunConfig, folder: Path, device: str) -> None:
        """Train into `folder`, or continue a run that was stopped there."""

    @abstractmethod
    def parameters(self, config: RunConfig) -> int: ...

    @abstractmethod
    def multiply_adds(self, config: RunConfig, sizes: Sequence[Size]) -> float:
        """Return the multiply-adds of one picture, as the mean over `sizes`."""

    @abstractmethod
    def untrained(self, config: RunConfig, classes: ClassTable, device: str) -> Detector: ...

    def config(self, scale: Scale, epochs: int | None, seed: int) -> RunConfig:
        """Return the configuration of a run: the published one with a schedule of `epochs` (None: as
        published), made smaller if `scale` is small. The rate drops after four fifths of the epochs, as in
        the papers, rounded down to whole epochs, but never before the end of the first."""
        config = self.base()
        epochs = self.epochs if epochs is None else epochs
        drops = (max(1, epochs * 4 // 5),) if epochs else ()
        config = replace(config, train=replace(config.train, epochs=epochs, lr_drop_epochs=drops, seed=seed))
        return small(config) if scale == "small" else config


class RecipeRow(Row):
    """A recipe of this package."""

    def base(self) -> RunConfig:
        return recipe(self.recipe)

    def train(self, data: Path, config: RunConfig, folder: Path, device: str) -> None:
        resume = (folder / STATE_FILE).exists()
        # The runs of a queue are read as a table, so they need no reports.
        train(data, config, folder, resume=resume, device=device, report=False)

    def parameters(self, config: RunConfig) -> int:
        return count_parameters(model_without_numbers(config.model))

    def multiply_adds(self, config: RunConfig, sizes: Sequence[Size]) -> float:
        return mean_multiply_adds(config.model, sizes)

    def untrained(self, config: RunConfig, classes: ClassTable, device: str) -> Detector:
        return Detector.of(new_checkpoint(config.model, classes, config.data, config.recipe, None), device)


@dataclass(frozen=True)
class Variant(RecipeRow):
    """A recipe with other `settings`, such as {"train.lr": 1e-4}, at its own scale and on its own schedule.

    No paper has published it; a queue's file defines it.
    """

    variant: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.variant

    @property
    def run_name(self) -> str:
        return self.variant

    def config(self, scale: Scale, epochs: int | None, seed: int) -> RunConfig:
        """Return the recipe with its settings, the seed and, if given, the number of epochs."""
        length = {} if epochs is None else {"train.epochs": epochs}
        return override(recipe(self.recipe), {**length, **self.settings, "train.seed": seed})


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def run_folder(output: Path, scale: Scale, name: str, epochs: int, seed: int) -> Path:
    return output / "runs" / scale / f"{name}-{epochs}ep-seed{seed}"


@dataclass(frozen=True)
class RunResult:
    """The result of the run in a folder.

    `metrics` are fractions from the last evaluation. `hours` is the training time of all processes (GPUs)
    together, without evaluations. `epochs` is the configured number of epochs, and `epochs_done` the number
    at the last evaluation. `data` comes from `training.settings.describe_data`; it is None for runs of older
    versions."""

    folder: Path
    seed: int
    epochs: int
    epochs_done: int
    metrics: Mapping[str, float]
    hours: float
    data: Mapping[str, Any] | None

    @property
    def finished(self) -> bool:
        return self.epochs_done >= self.epochs


def read_run(folder: Path) -> RunResult | None:
    """Return the result of a run folder, or None if nothing has been trained yet.

    Raises:
        UserError: if a file cannot be read; the message names it.
    """
    if not (folder / METRICS_FILE).is_file():
        return None
    config = read_config(folder / RUN_CONFIG_FILE, RunConfig())
    rows = read_metrics(folder / METRICS_FILE)
    evaluations = [row for row in rows if row["kind"] == "evaluation"]
    last = evaluations[-1] if evaluations else {"epoch": -1}
    starts = read_starts(folder)
    return RunResult(
        folder=folder,
        seed=config.train.seed,
        epochs=config.train.epochs,
        epochs_done=last["epoch"] + 1,
        metrics={name: last[name] for name in AP_NAMES if name in last},
        hours=sum(
            row.get("seconds", 0.0) * _processes(starts, row["step"])
            for row in rows
            if row["kind"] == "train"
        )
        / 3600,
        data=starts[-1].get("data") if starts else None,
    )


def _processes(starts: Sequence[Mapping[str, Any]], step: int) -> int:
    """Return the number of processes that took part in update `step`, or 1 if it is unknown.

    A resumed run may use a different number than before.
    """
    return next((start["processes"] for start in reversed(starts) if start["step"] < step), 1)


def require_data(run: RunResult, val: Split) -> None:
    """Raise a `UserError` if a run used data other than those of `val`.

    Runs of older versions, which do not describe their data, are accepted.
    """
    if run.data is None:
        return
    there = len(run.data["classes"]), run.data["val_images"]
    here = len(val.classes), len(val)
    if there != here or run.data["classes"] != list(val.classes.names):
        raise UserError(
            f"{run.folder} is a run on other data ({there[0]} classes, {there[1]} pictures to evaluate on), "
            f"not on {val.source} ({here[0]} and {here[1]}): choose another --output."
        )


def find_runs(output: Path, scale: Scale, name: str, epochs: int) -> list[RunResult]:
    """Return the runs of a row in the order of their seeds."""
    folders = (output / "runs" / scale).glob(f"{name}-{epochs}ep-seed*")
    found = [result for folder in folders if (result := read_run(folder)) is not None]
    return sorted(found, key=lambda result: result.seed)

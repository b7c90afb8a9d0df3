"""The writer of a run's log: a progress bar with the remaining time, `metrics.jsonl`, and TensorBoard events.

`metrics.jsonl` contains one JSON object per line: `{"kind": "train", step, epoch, loss, class, box, giou, …,
learning_rate, images_per_second, seconds, peak_memory_gb}` every `train.log_every` updates, with the means of
their losses and the sum of their seconds, and `{"kind": "evaluation", step, epoch, AP, …}`.

`environment.jsonl` has one object for each start of the run: the `step` after which it started, the machine
and the versions (system/environment.py), the number of `processes`, and the `data`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import TextColumn

from ..files import write_text, writing
from ..progress import progress_bar
from ..system.environment import environment
from ..system.memory import peak_bytes_with_children
from ..words import duration, exists, metric
from .names import METRICS_FILE, STARTS_FILE
from .reading import read_metrics

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TrainingLog:
    """A context manager that logs the updates and evaluations of a run if it is `enabled`.

    Args:
        folder: the run folder.
        console: the console that shows the progress: as a bar in a terminal, otherwise as lines.
        enabled: False if nothing is logged, as in all processes but the first.
        first_step: the number of updates that were done before this start; their rows stay in the log.
        closed_step: the last update whose evaluation counts; a resumed run repeats later evaluations.
        last_step: the number of updates of the whole run.
    """

    def __init__(
        self,
        folder: Path,
        console: Console,
        enabled: bool,
        *,
        first_step: int = 0,
        closed_step: int = 0,
        last_step: int,
    ):
        self.console, self.enabled = console, enabled
        self.folder = folder
        self.progress = progress_bar(
            console,
            enabled,
            columns_after=(
                TextColumn("{task.fields[speed]:.1f} img/s  loss {task.fields[loss]:.2f}"),
                TextColumn("{task.fields[memory]:.1f} GB"),
            ),
            description="epoch {task.fields[epoch]}",
            width=None,
            transient=False,
        )
        self.task = self.progress.add_task(
            "train", total=last_step, completed=first_step, epoch=1, speed=0.0, loss=float("nan"), memory=0.0
        )
        self.first_step, self.closed_step, self.last_step = first_step, closed_step, last_step
        self.window: list[Mapping[str, float]] = []
        self.window_images, self.window_seconds = 0, 0.0

    def __enter__(self) -> TrainingLog:
        if self.enabled:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / METRICS_FILE
            _drop_rows_after(path, self.first_step, self.closed_step)
            self.file = path.open("a", encoding="utf-8")
            self.events = _open_events(self.folder, self.first_step, self.console)
        self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.progress.stop()
        if self.enabled:
            with writing(self.file.name):
                self.file.close()
            if self.events is not None:
                self.events.close()

    def update(
        self,
        *,
        epoch: int,
        step: int,
        losses: Mapping[str, float],
        rates: Mapping[str, float],
        images: int,
        seconds: float,
        every: int,
    ) -> None:
        """Log an update; write a row of means if `step` is a multiple of `every` or the last step.

        Args:
            epoch: the epoch of the update, from 0.
            step: the number of the update, from 1.
            losses: the losses of the update by name; `loss` is the total.
            rates: the learning rates by the name of their parameter group.
            images: the number of images of the update.
            seconds: the duration of the update.
            every: the number of updates between two rows.

        Raises:
            UserError: if the log cannot be written.
        """
        if not self.enabled:
            return
        self.window.append(losses)
        self.window_images += images
        self.window_seconds += seconds
        speed = self.window_images / max(self.window_seconds, 1e-9)
        self.progress.update(self.task, completed=step, epoch=epoch + 1, speed=speed, loss=losses["loss"])
        if step % every and step != self.last_step:
            return
        means = _means(self.window)
        spent = self.window_seconds
        memory = peak_bytes_with_children() / 1e9
        self.progress.update(self.task, memory=memory)
        left = (self.last_step - step) * spent / len(self.window)
        self.window, self.window_images, self.window_seconds = [], 0, 0.0
        row = {
            "kind": "train",
            "epoch": epoch,
            "step": step,
            **{name: round(value, 6) for name, value in means.items()},
            "learning_rate": dict(rates),
            "images_per_second": round(speed, 2),
            "seconds": round(spent, 3),
            "peak_memory_gb": round(memory, 3),
        }
        self._write(row)
        self._add_events("train", means, step)
        self._add_events("learning_rate", rates, step)
        if not self.console.is_terminal:
            left_in_words = f"  {duration(left)} left" if step < self.last_step else ""
            self.console.print(
                f"epoch {epoch + 1}  update {step}/{self.last_step}  loss {means['loss']:.3f}  "
                f"{speed:.1f} img/s  {memory:.1f} GB{left_in_words}",
                highlight=False,
            )

    def epoch(self, epoch: int, step: int, metrics: Mapping[str, Any] | None) -> None:
        """Log the evaluation after an epoch, or after a run that ends in the middle of an epoch.

        Args:
            epoch: the epoch, from 0.
            step: the number of updates done.
            metrics: the result of the evaluation; None if there was none, in which case nothing is logged.

        Raises:
            UserError: if the log cannot be written.
        """
        if not self.enabled or metrics is None:
            return
        row = {key: value for key, value in metrics.items() if isinstance(value, int | float | str | dict)}
        self._write({"kind": "evaluation", "epoch": epoch, "step": step, **row})
        numbers = {
            name: value for name, value in metrics.items() if isinstance(value, float) and exists(value)
        }
        self._add_events("evaluation", numbers, step)
        self.console.print(
            f"epoch {epoch + 1}: "
            + "  ".join(f"{name} {metric(metrics[name])}" for name in ("AP", "AP50", "APs", "APm", "APl")),
            highlight=False,
        )

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the progress bar inside the block, for example during an evaluation."""
        self.progress.stop()
        try:
            yield
        finally:
            self.progress.start()

    def _write(self, row: Mapping[str, Any]) -> None:
        with writing(self.file.name):
            self.file.write(json.dumps(row) + "\n")
            self.file.flush()

    def _add_events(self, group: str, values: Mapping[str, float], step: int) -> None:
        if self.events is not None:
            for name, value in values.items():
                self.events.add_scalar(f"{group}/{name}", value, step)


def note_start(
    folder: Path, *, step: int, device: str | torch.device, processes: int, data: Mapping[str, Any]
) -> None:
    """Add a line about a start of the run to `environment.jsonl`.

    Args:
        folder: the run folder.
        step: the number of updates that were done before the start.
        device: the device that trains.
        processes: the number of processes that train together.
        data: a description of the data in JSON values.

    Raises:
        UserError: if the file cannot be written.
    """
    row = {"step": step, **environment(device, processes), "data": dict(data)}
    path = folder / STARTS_FILE
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def _open_events(folder: Path, first_step: int, console: Console) -> SummaryWriter | None:
    """Return TensorBoard's writer, which drops the events of updates that will be repeated.

    Return None if TensorBoard is not installed, or cannot write to a folder whose name is not UTF-8.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        reason = 'TensorBoard is not installed (pip install "deformable-detr[train]")'
    else:
        try:
            return SummaryWriter(str(folder), purge_step=first_step + 1)
        except UnicodeEncodeError:
            reason = "TensorBoard cannot write to a folder whose name is not UTF-8"
    console.print(
        f"{reason}: only metrics.jsonl is written, no events.", markup=False, highlight=False, soft_wrap=True
    )
    return None


def _means(window: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each value over the updates that have it.

    For example, an update that the float16 scaler skips has no gradient norm.
    """
    names = dict.fromkeys(name for row in window for name in row)
    values = {name: [row[name] for row in window if name in row] for name in names}
    return {name: sum(numbers) / len(numbers) for name, numbers in values.items()}


def _drop_rows_after(path: Path, step: int, closed_step: int) -> None:
    """Remove the rows that a resumed run will repeat.

    These are the rows of updates after `step` and of evaluations after `closed_step`. The incomplete row that
    a crash may leave at the end is removed too.

    Raises:
        UserError: if another row cannot be read, or the file cannot be written.
    """
    if not path.exists():
        return
    read_metrics(path)  # refuses a damaged file
    # The incomplete row may end within a character.
    whole, _, _ = path.read_text(encoding="utf-8", errors="backslashreplace").rpartition("\n")
    remaining = []
    for line in whole.splitlines():
        row = json.loads(line)
        if row["step"] <= (closed_step if row["kind"] == "evaluation" else step):
            remaining.append(f"{line}\n")
    write_text(path, "".join(remaining))

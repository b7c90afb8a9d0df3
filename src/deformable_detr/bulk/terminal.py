"""The output of a run: a progress bar (or a line each minute if there is no terminal), and a summary."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import TextColumn

from ..progress import progress_bar
from ..words import count, duration, printable
from .command import Progress, TablesReport

EVERY = 60.0  # seconds between two lines


class _State:
    """The progress of a run. Its speed does not include the pictures that an earlier run finished."""

    def __init__(self) -> None:
        self._start: tuple[float, int] | None = None
        self.done = self.total = self.failed = 0

    def update(self, done: int, total: int, failed: int) -> None:
        if self._start is None:
            self._start = (time.monotonic(), done)
        self.done, self.total, self.failed = done, total, failed

    def line(self) -> str:
        text = f"{self.done:,} of {count(self.total, 'picture')}"
        if self._start is not None and self.done > self._start[1]:
            speed = (self.done - self._start[1]) / (time.monotonic() - self._start[0])
            text += f", {speed:.1f} per second, {duration((self.total - self.done) / speed)} left"
        return f"{text}, {self.failed:,} unreadable" if self.failed else text


@contextmanager
def tables_progress(every: float = EVERY) -> Iterator[Progress]:
    """Show the progress on stderr, and yield the function that updates it.

    If stderr is not a terminal, a line is printed every `every` seconds instead of a progress bar.
    """
    console = Console(stderr=True)
    state = _State()
    if console.is_terminal:
        columns = (TextColumn("{task.fields[line]}"),)
        with progress_bar(console, columns_after=columns) as bar:
            task = bar.add_task("pictures", total=None, line="")

            def show(done: int, total: int, failed: int) -> None:
                state.update(done, total, failed)
                bar.update(task, completed=done, total=total, line=state.line().partition(", ")[2])

            yield show
        return
    stop = threading.Event()

    def write() -> None:
        while not stop.wait(every):
            print(state.line(), file=sys.stderr, flush=True)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    try:
        yield state.update
    finally:
        stop.set()
        thread.join()


def print_report(report: TablesReport) -> None:
    """Print a summary on stdout, and the number of unreadable pictures on stderr."""
    counts = report.counts
    print(
        printable(
            f"{count(counts.detections, 'detection')} in {count(counts.pictures, 'picture')}: "
            f"{report.manifest.parent}, {count(report.parts, 'part')}"
            + (f", {report.kept:,} of them from an earlier run" if report.kept else "")
        )
    )
    if counts.errors:
        print(
            f"warning: {counts.errors:,} of {count(counts.pictures, 'picture')} could not be read; the "
            "column error states why.",
            file=sys.stderr,
        )

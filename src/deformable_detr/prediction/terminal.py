"""The output of a prediction on the terminal: progress bars while it runs, and a summary."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.progress import TaskID

from ..progress import progress_bar
from ..words import count, printable
from .outputs import PredictionReport
from .sources import names_shown
from .videos import Progress


@contextmanager
def terminal_progress() -> Iterator[Progress | None]:
    """Show progress bars for `predict` on stderr, one for all pictures and one for each video.

    Yield the function that updates them, or None if stderr is not a terminal.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    with progress_bar(console) as bar:
        tasks: dict[str, TaskID] = {}

        def show(source: str, done: int, total: int | None) -> None:
            if source not in tasks:
                tasks[source] = bar.add_task(Path(source).name)
            bar.update(tasks[source], completed=done, total=total)

        yield show


def print_report(report: PredictionReport) -> None:
    """Print the results on stdout, and the inputs that were left out, skipped or partly broken on stderr."""
    inputs = [count(len(report.images), "picture")] if report.images or not report.videos else []
    inputs += [f"{count(video.frames, 'frame')} of {video.source}" for video in report.videos]
    folder, detections = report.predictions.parent, count(report.detections, "detection")
    _say(f"{detections} in {', '.join(inputs)}: {folder}, {report.predictions}")
    _say(f"threshold: {report.selection.in_words()}")
    if not report.detections:
        _say("Nothing reached the threshold: --threshold lowers it.")
    for video in report.videos:
        if video.broken_packets:
            _say(f"{video.source}: {video.broken_packets} broken parts passed over", sys.stderr)
    for left_out in report.left_out:
        _say(f"left out {left_out}: it holds results of predict", sys.stderr)
    if report.passed_over:
        number = count(len(report.passed_over), "file")
        names = names_shown(report.passed_over)
        _say(f"passed over {number} whose names are not those of pictures or videos: {names}", sys.stderr)
    for source, reason in report.skipped:
        _say(f"skipped {source}: {reason}", sys.stderr)
    if report.skipped:
        skipped = len(report.skipped)
        total = skipped + len(report.images) + len(report.videos)
        _say(f"warning: {skipped} of {total} inputs skipped, see {report.report}", sys.stderr)


def _say(sentence: str, stream: TextIO | None = None) -> None:
    print(printable(sentence), file=stream or sys.stdout)

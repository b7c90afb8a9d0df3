"""A progress bar for long tasks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

Item = TypeVar("Item")


def progress_bar(
    console: Console,
    show: bool = True,
    *,
    columns_after: tuple[ProgressColumn, ...] = (),
    description: str = "{task.description}",
    width: int | None = 40,
    transient: bool = True,
) -> Progress:
    """Create a progress bar that is shown only in a terminal.

    Args:
        console: the console that shows the bar.
        show: whether the bar is shown at all.
        columns_after: further columns to the right of the remaining time.
        description: the text before the bar, as a `rich` template.
        width: the bar's width in characters; None uses the rest of the line.
        transient: whether the bar is removed at the end.
    """
    return Progress(
        TextColumn(description, markup=False),
        BarColumn(bar_width=width),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        *columns_after,
        console=console,
        transient=transient,
        disable=not show or not console.is_terminal,
    )


def track(items: Iterable[Item], total: int, description: str, console: Console) -> Iterator[Item]:
    """Yield the items while a progress bar with a `description` shows how many of `total` were processed."""
    with progress_bar(console) as bar:
        yield from bar.track(items, total, description=description)

"""The inspection's report in a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..data.records import Problem
from ..pages import Cell, TableRow
from ..words import printable
from .duplicates import MAX_BITS, DuplicateGroup
from .facts import DataReport, Forecast, SplitReport, by_kind
from .remarks import MOSTLY_LOST
from .sizes import QUANTILES
from .tables import class_boxes, overview, size_bins, size_spread

CLASSES_SHOWN = 100
GROUPS_SHOWN = 5
NAME_WIDTH = 32


def print_report(report: DataReport, console: Console) -> None:
    """Print the report, laid out for a console that is at least 80 columns wide."""
    also = [name for name in report.formats if name != report.format]
    others = f" (also present: {', '.join(also)}; choose with --format)" if also else ""
    console.print(_text(f"{report.root}: {report.format} data set{others}", "bold"))
    for remark in report.remarks:
        if remark.kind == MOSTLY_LOST:
            console.print(_text(f"Warning: {remark.message}", "bold red"))
    names = [split.name for split in report.splits]
    console.print(_table(["", *names], overview(report)))

    _heading("Classes and their rows in the class head", console)
    console.print(_class_table(report))

    view = report.view
    _heading(f"Objects as {view.recipe} sees them", console)
    console.print(
        _text(
            f"Pictures are resized to a short side of {view.data.image_size}, a long side of at most "
            f"{view.data.max_size}. Size is the square root of a box's area."
        )
    )
    console.print(_spread_table(report))
    console.print(_table(["cells of level 1", *names], size_bins(report)))

    _heading("Problems", console)
    for problem in report.unusable:
        console.print(_text(f"{problem.where} cannot be used: {problem.message}", "red"))
    for split in report.splits:
        _print_problems(split, console)
    if report.problem_count == 0:
        checks = {split.images_checked for split in report.splits}
        limits = {"headers": "; only the headers of images were read", "no": "; images were not opened"}
        console.print(_text(f"No problems found{limits.get(min(checks), '')}."))
    if report.duplicates:
        _heading(f"Duplicate pictures (at most {MAX_BITS} of the hash's 256 bits apart)", console)
        _print_duplicates(report.duplicates, console)

    if report.remarks:
        _heading("Remarks", console)
        for remark in report.remarks:
            _print_item(remark.message, console)
    print_forecast(report, console)


def print_forecast(report: DataReport, console: Console) -> None:
    """Print the forecast of training, if the report has one."""
    if report.forecast is None:
        return
    _heading("Forecast of training here", console)
    for sentence in forecast_sentences(report.forecast):
        _print_item(sentence, console)


def forecast_sentences(forecast: Forecast) -> tuple[str, ...]:
    """Describe the forecast and its assumptions in sentences."""
    height, width = forecast.largest_batch
    memory = f"{forecast.peak_bytes / 1e9:.1f} GB of memory, loader processes included"
    if forecast.gpu_bytes:
        memory += f", and {forecast.gpu_bytes / 1e9:.1f} GB on the GPU"
    evaluation = (
        f" and {duration(forecast.evaluation_seconds)} of evaluation" if forecast.evaluation_seconds else ""
    )
    busy = ""
    if forecast.is_disturbed:
        busy = (
            f" The machine is very busy: an update took {forecast.update_cpu_seconds:.2f} s of processor "
            f"time, so when idle it may be up to {forecast.slowdown:.0f} times as fast. Measure again then."
        )
    return (
        f"An epoch takes {duration(forecast.epoch_seconds)} on {forecast.device}: "
        f"{forecast.updates_per_epoch:,} updates of {forecast.update_seconds:.2f} s "
        f"(±{forecast.update_spread:.2f}; {forecast.batch_size} images each){evaluation}. All "
        f"{forecast.epochs} epochs of {forecast.recipe}: {duration(forecast.total_seconds)}.",
        f"It needs {memory}: the measured maximum, with a batch of {width} x {height} pixels, the largest "
        "that these data produce.",
        f"The forecast assumes that every update takes as long as the {forecast.updates_measured} measured "
        f"ones, on a machine as busy as now (load {forecast.load:.1f} on {forecast.cores} cores). Weights "
        f"were random, which takes the same time.{busy}",
    )


def duration(seconds: float) -> str:
    """Format a duration, given in seconds, as seconds, minutes, hours or days.

    It has about two significant digits, because a forecast is no more precise.
    """
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    if hours < 48:
        return f"{hours:.1f} h"
    return f"{hours / 24:.1f} days"


def _heading(title: str, console: Console) -> None:
    console.print()
    console.print(_text(title, "bold"))


def _print_item(sentence: str, console: Console) -> None:
    row = Table.grid(padding=(0, 1, 0, 0))
    row.add_row("-", _text(sentence))
    console.print(row)


def _table(heads: Sequence[str], rows: Sequence[TableRow], left: Sequence[int] = (0,)) -> Table:
    """Build a table. The columns whose indices are in `left` are aligned left, all others right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column, head in enumerate(heads):
        table.add_column(_text(head), justify="left" if column in left else "right")
    for row in rows:
        table.add_row(*(_text(Cell.from_text(cell).text) for cell in row))
    return table


def _class_table(report: DataReport) -> Table:
    heads = ["row", "id", "class", *(f"boxes {split.name}" for split in report.splits)]
    rows = class_boxes(report, CLASSES_SHOWN)
    more = len(report.class_rows()) - len(rows)
    table = _table(heads, [*rows, ["", "", f"and {more} more"]] if more else rows, left=(2,))
    table.columns[
        2
    ].max_width = NAME_WIDTH  # a long name takes several lines, so that the counts stay visible
    return table


def _spread_table(report: DataReport) -> Table:
    pixels = [size_spread(split, report.view)[0] for split in report.splits]
    return _table(["", *QUANTILES], [*pixels, *size_spread(report.shown_split, report.view)[1:]])


def _print_problems(split: SplitReport, console: Console) -> None:
    if split.rotated:
        console.print(_text(f"{split.name}: images turned upright by their EXIF data: {split.rotated}"))
    if split.not_rotated:
        ignored = "images whose EXIF orientation is ignored, because they were annotated as stored"
        console.print(_text(f"{split.name}: {ignored}: {split.not_rotated}"))
    groups: tuple[tuple[str, Sequence[Problem]], ...] = (("yellow", split.problems), ("", split.notes))
    for style, problems in groups:
        for kind, entry in by_kind(problems).items():
            console.print(_text(f"{split.name}: {entry['count']} x {kind}", style))
            for example in entry["examples"]:
                line = _text(f"{example['where']}: {example['message']}")
                console.print(Padding(line, (0, 0, 0, 2)))
            if entry["count"] > len(entry["examples"]):
                console.print(_text(f"  and {entry['count'] - len(entry['examples'])} more"))


def _print_duplicates(groups: Sequence[DuplicateGroup], console: Console) -> None:
    for group in groups[:GROUPS_SHOWN]:
        members = [f"{split}: {name}" for split, name in group.members[:4]]
        more = f" and {len(group.members) - 4} more" if len(group.members) > 4 else ""
        _print_item(f"{' = '.join(members)}{more} ({group.bits} of 256)", console)
    if len(groups) > GROUPS_SHOWN:
        console.print(_text(f"  and {len(groups) - GROUPS_SHOWN} more groups (all with --output FILE)"))


def _text(content: str, style: str = "") -> Text:
    """Return text in which markup and control characters have no effect, because names come from files."""
    return Text(printable(content), style)

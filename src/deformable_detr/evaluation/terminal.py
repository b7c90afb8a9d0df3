"""The output of an evaluation on the terminal: tables of the metrics, and the thresholds that were chosen."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..checkpoint.decision import reason_in_words
from ..inference.selection import MAX_THRESHOLDS
from ..words import listed, percent, printable


def print_metrics(metrics: Mapping[str, Any], console: Console) -> None:
    """Print a result of `evaluate` as tables in percent, at most 80 columns wide.

    A line on the images and the time follows, and then, if `evaluate` was called with `decide`, lines on the
    thresholds.
    """
    if "mAP" in metrics:
        columns: tuple[str, ...] = ("AP",)
        console.print(Text(f"mAP {percent(metrics['mAP'])} (Pascal VOC, in percent)", "bold"))
    else:
        columns = ("AP", "AP50")
        summary = Table("in percent", title="COCO metrics", title_justify="left")
        for area in ("all", "small", "medium", "large"):
            summary.add_column(area, justify="right")
        for name, *keys in (
            ("AP", "AP", "APs", "APm", "APl"),
            ("AP50", "AP50"),
            ("AP75", "AP75"),
            ("AR, 1 detection", "AR1"),
            ("AR, 10 detections", "AR10"),
            ("AR, 100 detections", "AR100", "ARs", "ARm", "ARl"),
        ):
            summary.add_row(name, *(percent(metrics[key]) for key in keys))
        console.print(summary)
    console.print(_class_table(metrics["per_class"], columns))
    if "images" in metrics:
        console.print(
            f"{metrics['images']} images of {metrics['split']} in {metrics['seconds']:.1f} s, "
            f"{metrics['batching']} batching",
            markup=False,
            highlight=False,
        )
    if "decision" in metrics:
        decision = metrics["decision"]
        nothing = ["No detection is right, so that no thresholds were chosen."]
        for line in (
            nothing if decision is None else [*decision_lines(decision), "They are saved in the model."]
        ):
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def decision_lines(decision: Mapping[str, Any]) -> list[str]:
    """Return lines that describe a result of `Decision.by_class`.

    They state the thresholds, the classes that use the threshold of all classes together, and the classes
    that do not reach the required precision.
    """
    names_of: dict[str, list[str]] = defaultdict(list)
    for name, basis in decision["bases"].items():
        names_of[basis].append(name)
    scores = listed([f"{name} {score:g}" for name, score in decision["thresholds"].items()], MAX_THRESHOLDS)
    rule, split = decision["rule"], decision["split"]
    lines = [f"thresholds for {reason_in_words(rule, split)}: {scores}"]
    if names := names_of["all classes"]:
        lines.append(
            f"{listed(names, MAX_THRESHOLDS)}: no detection on {split} is right, so the threshold of all "
            "classes together is used."
        )
    if names := names_of["most precise"]:
        lines.append(
            f"{listed(names, MAX_THRESHOLDS)}: the precision of {rule:g} is not reached, so the most precise "
            "threshold is used."
        )
    return [printable(line) for line in lines]


def _class_table(per_class: Mapping[str, Mapping[str, float]], columns: Sequence[str]) -> Table:
    """Build a table with one class per line, or with two side by side if there are more than 12."""
    side_by_side = 2 if len(per_class) > 12 else 1
    table = Table(title=f"{len(per_class)} classes", title_justify="left")
    for _ in range(side_by_side):
        table.add_column("class", no_wrap=True, overflow="ellipsis", max_width=18 if side_by_side > 1 else 40)
        for column in columns:
            table.add_column(column, justify="right", no_wrap=True)
    cells = [
        [Text(printable(name)), *(Text(percent(numbers[column])) for column in columns)]
        for name, numbers in per_class.items()
    ]
    height = -(-len(cells) // side_by_side)
    for line in range(height):
        table.add_row(*(cell for class_cells in cells[line::height] for cell in class_cells))
    return table

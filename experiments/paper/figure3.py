"""Figure 3: AP by epoch, from the `metrics.jsonl` of any runs.

    python -m experiments.paper figure3 runs/a runs/b [--labels "Deformable DETR" DETR] --output runs/paper

Runs with the same label are seeds of one experiment: the figure shows their mean, and a band from the lowest
to the highest.
"""

from __future__ import annotations

from argparse import Namespace
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from deformable_detr.cli.options import Parser
from deformable_detr.config import RunConfig, read_config
from deformable_detr.errors import UserError
from deformable_detr.files import write_json
from deformable_detr.run_folder.names import METRICS_FILE, RUN_CONFIG_FILE
from deformable_detr.run_folder.reading import read_metrics
from experiments.commands import add_output

from .pictures import COLOURS, new_figure, save_figure
from .published import FIGURE_3_DEFORMABLE, FIGURE_3_DETR_DC5
from .rows import AP_NAMES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curve = Mapping[int, float]  # AP, a fraction, by epoch (from 1)


def add_arguments(parser: Parser) -> None:
    parser.argument("runs", "RUN", "Run folders or metrics.jsonl files.", many=True)
    parser.option(
        "--labels", str, [], "One label for each RUN. Default: the recipes' names.", shown="TEXT", many=True
    )
    parser.option("--metric", str, "AP", f"What to draw, of {', '.join(AP_NAMES)}.", shown="NAME")
    parser.flag("--published", "Also mark the paper's end points on COCO.")
    add_output(parser, "figure3.png, .svg and .json")


def run(arguments: Namespace) -> None:
    curves = read_curves(arguments.runs, arguments.labels, arguments.metric)
    output = Path(arguments.output)
    content = {
        "metric": arguments.metric,
        "curves": {label: [dict(curve) for curve in group] for label, group in curves.items()},
    }
    write_json(output / "figure3.json", content)
    png, svg = save_figure(draw(curves, arguments.metric, arguments.published), output / "figure3")
    print(f"written: {png}, {svg}")


def read_curves(
    runs: Sequence[str | Path], labels: Sequence[str] = (), metric: str = "AP"
) -> dict[str, list[Curve]]:
    """Return the curves of each label, in the order in which labels appear.

    Raises:
        UserError: if the metric is unknown, if there are too few or too many labels, if a run cannot be read,
            was never evaluated or had no object to measure on, or if runs of one label have no common epoch.
    """
    if metric not in AP_NAMES:
        raise UserError(f"--metric must be one of {', '.join(AP_NAMES)}, not {metric}.")
    if labels and len(labels) != len(runs):
        raise UserError(f"--labels: {len(labels)} labels for {len(runs)} runs: give one for each.")
    curves: dict[str, list[Curve]] = defaultdict(list)
    for index, each in enumerate(runs):
        path = Path(each)
        path = path / METRICS_FILE if path.is_dir() else path
        curves[labels[index] if labels else _label(path)].append(_curve(path, metric))
    for label, group in curves.items():
        if not set.intersection(*(set(curve) for curve in group)):
            raise UserError(f"the runs of {label} were evaluated at no common epoch: give them --labels.")
    return dict(curves)


def _curve(path: Path, metric: str) -> Curve:
    evaluations = [row for row in read_metrics(path) if row["kind"] == "evaluation"]
    if not evaluations:
        raise UserError(f"{path} has no evaluation: the run was not evaluated yet, leave it out.")
    try:
        curve = {int(row["epoch"]) + 1: float(row[metric]) for row in evaluations}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} has an evaluation without epoch and {metric} ({error}): leave it out."
        ) from error
    # -1 means that there are no such objects
    measured = {epoch: value for epoch, value in curve.items() if value >= 0}
    if not measured:
        raise UserError(f"{path}: there is no object to measure {metric} on; choose another --metric.")
    return measured


def _label(path: Path) -> str:
    """Return the recipe and the length of the schedule, or the folder's name if these are unknown."""
    config_file = path.parent / RUN_CONFIG_FILE
    if not config_file.is_file():
        return path.parent.name or path.stem
    config = read_config(config_file, RunConfig())
    return f"{config.recipe}, {config.train.epochs} epochs"


def draw(curves: Mapping[str, Sequence[Curve]], metric: str = "AP", published: bool = False) -> Figure:
    """Draw one line per label."""
    figure = new_figure()
    axes = figure.axes[0]
    for index, (label, group) in enumerate(curves.items()):
        colour = COLOURS[index % len(COLOURS)]
        style = "-" if index < len(COLOURS) else "--"
        epochs = sorted(set.intersection(*(set(curve) for curve in group)))
        values = [[100 * curve[epoch] for curve in group] for epoch in epochs]
        means = [fmean(each) for each in values]
        marker = "o" if len(epochs) == 1 else None
        axes.plot(epochs, means, style, color=colour, linewidth=1.4, label=label, marker=marker, markersize=3)
        if len(group) > 1:
            lowest, highest = [min(each) for each in values], [max(each) for each in values]
            axes.fill_between(epochs, lowest, highest, color=colour, alpha=0.15, linewidth=0)
    if published:
        for label, points, marker in (
            ("Deformable DETR (paper, COCO)", FIGURE_3_DEFORMABLE, "*"),
            ("DETR-DC5 (paper, COCO)", FIGURE_3_DETR_DC5, "x"),
        ):
            axes.plot(list(points), list(points.values()), marker, color="0.3", markersize=5, label=label)
    axes.set_xlabel("epoch", fontsize=9)
    axes.set_ylabel(f"{metric} (%)", fontsize=9)
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.legend(fontsize=7, frameon=False, loc="lower right")
    return figure

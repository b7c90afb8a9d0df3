"""A comparison of the small-scale runs with the paper's claims, from the JSON files of finished runs alone.

    python -m experiments.paper summary experiments/results/paper --output runs/paper [--into docs/paper.md]

For each data set there is a table of its runs (mean and spread over seeds) next to the paper's numbers, the
factor by which DETR needs more epochs to reach Deformable DETR's AP, and the gain of each ingredient, here
and in the paper. The command writes `summary.json`, `summary.md` and a figure 3 of each data set. `--into`
puts the tables between the two markers of a Markdown file, and the figures into `images/` next to it. Runs
that are missing are listed as missing.

AP is a fraction in JSON and in percent elsewhere.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from deformable_detr.cli.options import Parser
from deformable_detr.files import write_json, write_text
from experiments.commands import add_output

from . import published
from .claims import DEFORMABLE, DENSE, Convergence, Effect, convergence, effects
from .finished import Experiment, group, missing, read_results
from .markers import put_between, split_at_markers
from .pictures import COLOURS, new_figure, save_figure
from .queue import ROWS, read_queue
from .rows import AP_NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DRAWN = (DEFORMABLE, *DENSE, "deformable_detr_r50_two_stage")
COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
SIZES = ("AP", "APs", "APm", "APl")
PANELS = ("AP", "APs", "APl")
PUBLISHED_RIVALS = {
    "DETR-DC5, 50 epochs": published.DETR_DC5_50,
    "DETR-DC5, 500 epochs": published.DETR_DC5_500,
}


def add_arguments(parser: Parser) -> None:
    parser.argument("results", "FOLDER", "The folder of JSON files that `queue` wrote.")
    parser.option(
        "--queue",
        str | None,
        None,
        "A queue's YAML file: name those of its runs that are missing.",
        shown="FILE",
    )
    add_output(parser, "JSON, Markdown and figures")
    parser.option(
        "--into", str | None, None, "A Markdown file with the two markers to write between.", shown="FILE"
    )


def run(arguments: Namespace) -> None:
    output = Path(arguments.output)
    into = None if arguments.into is None else Path(arguments.into)
    if into is not None:
        split_at_markers(into)  # before any work is done
    experiments = group(read_results(Path(arguments.results)))
    queued = [] if arguments.queue is None else read_queue(Path(arguments.queue))[1]
    absent = missing(experiments, queued)
    names = list(dict.fromkeys(each.data for each in experiments))
    content = {
        "units": "AP: fraction; hours: of training on one run's threads; published differences: percent",
        "runs": [_entry(each) for each in experiments],
        "convergence": [asdict(each) for name in names for each in convergence(experiments, name)],
        "ingredients": [asdict(each) for name in names for each in effects(experiments, name)],
        "missing": absent,
    }
    write_json(output / "summary.json", content)
    text = markdown(experiments, absent)
    write_text(output / "summary.md", text)
    written = [output / "summary.json", output / "summary.md"]
    for name in names:
        figure = draw([each for each in experiments if each.data == name])
        written += save_figure(figure, output / f"summary_{name}")
        if into is not None:
            written += save_figure(figure, into.parent / "images" / f"paper_{name}")
    if into is not None:
        pictures = "".join(f"\n![AP against epoch on {name}](images/paper_{name}.png)\n" for name in names)
        put_between(into, text + pictures)
        written.append(into)
    print(text)
    print("written: " + ", ".join(map(str, written)))


def _entry(each: Experiment) -> dict[str, Any]:
    metrics = {name: _mean(each.values(name)) for name in AP_NAMES}
    spreads = {f"{name}_spread": _spread(each.values(name)) for name in AP_NAMES}
    return {
        "data": each.data,
        "row": each.row,
        "epochs": each.epochs,
        "seeds": [run.seed for run in each.runs],
        "hours": round(each.hours, 4),
        **metrics,
        **spreads,
    }


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _spread(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None


# ---- Words -----------------------------------------------------------------------------------------


def markdown(experiments: Sequence[Experiment], absent: Sequence[str] = ()) -> str:
    """Return all tables, with AP in percent as mean ± standard deviation over seeds."""
    parts = []
    for name in dict.fromkeys(each.data for each in experiments):
        own = [each for each in experiments if each.data == name]
        parts += [f"### {name}\n", _runs_table(own)]
        parts += [_convergence_table(convergence(own, name)), _sizes_table(own)]
        found = effects(own, name)
        if any(effect.seeds for effect in found):
            parts.append(_effects_table(found))
    if not experiments:
        parts.append("No run is finished yet.\n")
    if absent:
        parts.append(f"Not run yet ({len(absent)}): {', '.join(absent)}.\n")
    return "\n".join(part for part in parts if part)


def _runs_table(experiments: Sequence[Experiment]) -> str:
    """Return a table whose cells show the value measured here / the paper's value on COCO after its own
    epochs."""
    lines = [
        f"| here / paper | epochs | seeds | {' | '.join(COLUMNS)} | minutes |",
        "|" + "---|" * (len(COLUMNS) + 4),
    ]
    for each in experiments:
        row = ROWS[each.row]
        cells = " | ".join(
            f"{_in_percent(each.values(name))} / {_or_dash(getattr(row.published, name))}" for name in COLUMNS
        )
        minutes = f"{60 * each.hours:.0f}"
        lines.append(
            f"| {each.label} | {each.epochs} / {row.epochs} | {len(each.runs)} | {cells} | {minutes} |"
        )
    return "\n".join(lines) + "\n"


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _in_percent(values: Sequence[float]) -> str:
    if not values:
        return "-"
    spread = _spread(values)
    return f"{100 * fmean(values):.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}")


def _convergence_table(found: Sequence[Convergence]) -> str:
    if not found:
        return ""
    first = found[0]
    lines = [
        f"Deformable DETR's {100 * first.target:.1f} AP after {first.target_epochs} epochs is reached by\n",
        "| | after | times the epochs | times the training time |",
        "|---|---|---|---|",
    ]
    for each in found:
        more = "more than " if each.epochs is None else ""
        lines.append(
            f"| {ROWS[each.row].label} | {more}{each.epochs or each.most_epochs} epochs | "
            f"{more}{each.times:.1f} | {more}{each.times_seconds:.1f} |"
        )
    return "\n".join(lines) + "\n"


def _sizes_table(experiments: Sequence[Experiment]) -> str:
    """Return a table of the differences between Deformable DETR and each DETR by object size.

    It is empty if either was not run.
    """
    own = [each for each in experiments if each.row == DEFORMABLE]
    rivals = [each for each in experiments if each.row in DENSE]
    if not own or not rivals:
        return ""
    first = min(own, key=lambda each: each.epochs)
    lines = [
        f"| Deformable DETR, {first.epochs} epochs, less | {' | '.join(SIZES)} |",
        "|" + "---|" * (len(SIZES) + 1),
    ]
    for rival in rivals:
        pairs = [(_mean(first.values(name)), _mean(rival.values(name))) for name in SIZES]
        cells = ["-" if a is None or b is None else f"{100 * (a - b):+.1f}" for a, b in pairs]
        lines.append(f"| {rival.label}, {rival.epochs} epochs | {' | '.join(cells)} |")
    for label, row in PUBLISHED_RIVALS.items():
        cells = [f"{getattr(published.DEFORMABLE_50, name) - getattr(row, name):+.1f}" for name in SIZES]
        lines.append(f"| *paper: 50 epochs less {label}* | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _effects_table(found: Sequence[Effect]) -> str:
    lines = ["| what it adds to AP | here | paper | seeds | |", "|---|---|---|---|---|"]
    for each in found:
        here = "-"
        if each.mean is not None:
            here = f"{100 * each.mean:+.1f}" + ("" if each.spread is None else f" ± {100 * each.spread:.1f}")
        lines.append(
            f"| {each.ingredient} | {here} | {each.published:+.1f} | {each.seeds} | {each.verdict} |"
        )
    return "\n".join(lines) + "\n"


# ---- Picture ---------------------------------------------------------------------------------------


def draw(experiments: Sequence[Experiment]) -> Figure:
    """Plot AP of all, small and large objects by epoch (logarithmic): the mean over seeds, and a band from
    the lowest to the highest. Sizes without objects are left out."""
    drawn = [each for each in experiments if each.row in DRAWN]
    metrics = [name for name in PANELS if name == "AP" or any(each.values(name) for each in drawn)]
    figure = new_figure(columns=len(metrics))
    last = max((each.epochs for each in drawn), default=1)
    ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500) if tick <= last]
    for axes, metric in zip(figure.axes, metrics, strict=True):
        for each in drawn:
            _draw_curve(
                axes, each, metric, longer=any(e.row == each.row and e.epochs < each.epochs for e in drawn)
            )
        axes.set_xscale("log")
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.set_xlim(0.9, 1.1 * last)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("epoch", fontsize=9)
        axes.set_ylabel(f"{metric} (%)", fontsize=9)
    if drawn:
        lines, labels = figure.axes[0].get_legend_handles_labels()
        columns = 2 * len(metrics)
        figure.legend(lines, labels, fontsize=7, frameon=False, loc="outside lower center", ncols=columns)
    return figure


def _draw_curve(axes: Axes, each: Experiment, metric: str, longer: bool) -> None:
    """Draw one curve. It is dashed if its schedule is `longer` than the row's shortest one."""
    colour = COLOURS[DRAWN.index(each.row)]
    curve = {epoch: 100 * value for epoch, value in each.curve(metric).items() if value >= 0}
    epochs, label = list(curve), f"{each.label}, {each.epochs} epochs"
    style = "--" if longer else "-"
    axes.plot(
        epochs, list(curve.values()), f"o{style}", color=colour, label=label, markersize=2, linewidth=1.2
    )
    if len(each.runs) > 1:
        values = [[100 * run.curve[epoch][metric] for run in each.runs] for epoch in epochs]
        lowest, highest = [min(row) for row in values], [max(row) for row in values]
        axes.fill_between(epochs, lowest, highest, color=colour, alpha=0.15, linewidth=0)

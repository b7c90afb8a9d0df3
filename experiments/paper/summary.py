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

import json
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, Literal

from scipy.stats import t as student

from deformable_detr.cli.options import Parser
from deformable_detr.errors import UserError
from deformable_detr.files import write_json, write_text
from experiments.commands import add_output

from . import published, table1, table2
from .pictures import COLOURS, new_figure, save_figure
from .queue import ROWS, QueuedRun, read_queue
from .rows import AP_NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DEFORMABLE = "deformable_detr_r50"
DENSE = ("detr_r50", "detr_r50_dc5", "detr_r50_dc5_plus")
DRAWN = (DEFORMABLE, *DENSE, "deformable_detr_r50_two_stage")
COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
SIZES = ("AP", "APs", "APm", "APl")
PANELS = ("AP", "APs", "APl")
PUBLISHED_RIVALS = {
    "DETR-DC5, 50 epochs": published.DETR_DC5_50,
    "DETR-DC5, 500 epochs": published.DETR_DC5_500,
}
BEGIN, END = "<!-- paper summary: begin -->", "<!-- paper summary: end -->"

CHANCE = 0.05  # the probability of reporting a difference that does not exist

Verdict = Literal["one seed", "as published", "undecided", "not as published", "not run"]


@dataclass(frozen=True)
class Ingredient:
    """A difference between two rows that the paper or the repository reports; `published` is in percent of
    AP. `published_with` is the source's number of the first row, if it differs from the paper's."""

    label: str
    with_it: str
    without: str
    published_with: published.Published | None = None

    @property
    def published(self) -> float:
        first = self.published_with or ROWS[self.with_it].published
        return round(first.AP - ROWS[self.without].published.AP, 1)


INGREDIENTS = (
    Ingredient(
        "multi-scale inputs", "deformable_detr_r50_own_level_k1", "deformable_detr_r50_single_scale_k1"
    ),
    Ingredient("K = 4 instead of 1", "deformable_detr_r50_own_level", "deformable_detr_r50_own_level_k1"),
    Ingredient("multi-scale attention", DEFORMABLE, "deformable_detr_r50_own_level"),
    Ingredient(
        "all levels instead of one",
        DEFORMABLE,
        "deformable_detr_r50_single_scale",
        published.DEFORMABLE_50_REPOSITORY,
    ),
    Ingredient("an FPN on top", "deformable_detr_r50_fpn", DEFORMABLE),
    Ingredient("a BiFPN on top", "deformable_detr_r50_bifpn", DEFORMABLE),
    Ingredient("iterative refinement", "deformable_detr_r50_refine", DEFORMABLE),
    Ingredient("two stages", "deformable_detr_r50_two_stage", "deformable_detr_r50_refine"),
    Ingredient("DETR-DC5: focal loss", "detr_r50_dc5_plus", "detr_r50_dc5_50_epochs"),
)


@dataclass(frozen=True)
class Result:
    """A finished run; `curve` maps an epoch (from 1) to its metrics."""

    data: str
    row: str
    epochs: int
    seed: int
    hours: float
    metrics: Mapping[str, float]
    curve: Mapping[int, Mapping[str, float]]


@dataclass(frozen=True)
class Experiment:
    """Runs that differ only in their seeds."""

    data: str
    row: str
    epochs: int
    runs: tuple[Result, ...]

    @property
    def label(self) -> str:
        return ROWS[self.row].label

    def values(self, metric: str) -> list[float]:
        """Return the values by seed; a metric without objects to measure it on has none."""
        return [run.metrics[metric] for run in self.runs if run.metrics[metric] >= 0]

    @property
    def hours(self) -> float:
        return fmean(run.hours for run in self.runs)

    def curve(self, metric: str) -> dict[int, float]:
        """Return the mean over seeds, at the epochs at which all of them were evaluated."""
        epochs = sorted(set.intersection(*(set(run.curve) for run in self.runs)))
        return {epoch: fmean(run.curve[epoch][metric] for run in self.runs) for epoch in epochs}


@dataclass(frozen=True)
class Convergence:
    """The training that a DETR needs to reach Deformable DETR's AP, `target`, which that has after
    `target_epochs`. `epochs` is the first evaluation at which its mean curve reaches the target (None: not
    within its `most_epochs`); `times` is the ratio to `target_epochs`, and `times_seconds` the ratio of
    training times."""

    data: str
    row: str
    target: float
    target_epochs: int
    epochs: int | None
    most_epochs: int
    times: float
    times_seconds: float


@dataclass(frozen=True)
class Effect:
    """The gain in AP from an ingredient, if both of its rows were run for the same epochs. `mean` and
    `spread` are over the seeds that both have (None: not run, or fewer than two)."""

    data: str
    ingredient: str
    epochs: int | None
    mean: float | None
    spread: float | None
    seeds: int
    published: float
    verdict: Verdict


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
    surroundings = None if into is None else _split_at_markers(into)
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
    if into is not None and surroundings is not None:
        before, after = surroundings
        pictures = "".join(f"\n![AP against epoch on {name}](images/paper_{name}.png)\n" for name in names)
        write_text(into, f"{before}{BEGIN}\n\n{text}{pictures}\n{END}{after}")
        written.append(into)
    print(text)
    print("written: " + ", ".join(map(str, written)))


def _split_at_markers(path: Path) -> tuple[str, str]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"--into {path} cannot be read ({error.strerror}): name a Markdown file.") from error
    before, begun, rest = text.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not begun or not ended:
        raise UserError(
            f"--into {path} has no place for the tables: put the lines {BEGIN} and {END} into it."
        )
    return before, after


# ---- Reading ---------------------------------------------------------------------------------------


def read_results(folder: Path) -> list[Result]:
    """Read the results in the order of their file names.

    Raises:
        UserError: if the folder does not exist, or a file (which the message names) is not a result.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: name the one that `paper queue --results` wrote.")
    return [_read_result(path) for path in sorted(folder.glob("*-seed*.json"))]


def _read_result(path: Path) -> Result:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        result = Result(
            data=str(content["data"]),
            row=ROWS[content["row"]].name,
            epochs=_whole(content, "epochs"),
            seed=_whole(content, "seed"),
            hours=float(content["training_hours"]),
            metrics={name: float(content[name]) for name in AP_NAMES},
            curve={
                _whole(row, "epoch"): {name: float(row[name]) for name in AP_NAMES}
                for row in content["curve"]
            },
        )
        if result.epochs < 1 or result.hours <= 0 or result.epochs not in result.curve:
            raise ValueError("nothing was trained, or its end not evaluated")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not the result of a queued run ({error}): take it out.") from error
    return result


def _whole(content: Mapping[str, Any], name: str) -> int:
    number = content[name]
    if type(number) is not int:
        raise TypeError(f"{name} is {number!r}")
    return number


def group(results: Iterable[Result]) -> list[Experiment]:
    """Group results by data set, then in the order of tables 1 and 2, then by epochs."""
    groups: dict[tuple[str, str, int], list[Result]] = defaultdict(list)
    for result in results:
        groups[result.data, result.row, result.epochs].append(result)
    order = [row.name for row in (*table1.ROWS, *table2.ROWS)]
    keys = sorted(groups, key=lambda key: (key[0], order.index(key[1]), key[2]))
    return [Experiment(*key, tuple(sorted(groups[key], key=lambda run: run.seed))) for key in keys]


def missing(experiments: Sequence[Experiment], queued: Sequence[QueuedRun]) -> list[str]:
    """Return the names of queued runs that have no result."""
    done = {(run.data, run.row, run.epochs, run.seed) for each in experiments for run in each.runs}
    return [each.name for each in queued if (each.data, each.row.name, each.epochs, each.seed) not in done]


# ---- Numbers ---------------------------------------------------------------------------------------


def convergence(experiments: Sequence[Experiment], data: str) -> list[Convergence]:
    """Compare each DETR on a data set with Deformable DETR's shortest schedule, if that was run.

    Every evaluation counts, not only the last one. In the middle of a schedule DETR's AP is lower than at the
    end of a schedule of that length, because the learning rate has not dropped yet.
    """
    own = [each for each in experiments if each.data == data]
    targets = [each for each in own if each.row == DEFORMABLE and each.values("AP")]
    if not targets:
        return []
    target = min(targets, key=lambda each: each.epochs)
    wanted = fmean(target.values("AP"))
    found = []
    for row in DENSE:
        rivals = [each for each in own if each.row == row]
        if not rivals:
            continue
        longest = max(rivals, key=lambda each: each.epochs)
        reached = [
            (epoch, each) for each in rivals for epoch, value in each.curve("AP").items() if value >= wanted
        ]
        epochs, by = min(reached, key=lambda pair: pair[0]) if reached else (None, longest)
        spent = longest.epochs if epochs is None else epochs
        found.append(
            Convergence(
                data=data,
                row=row,
                target=wanted,
                target_epochs=target.epochs,
                epochs=epochs,
                most_epochs=longest.epochs,
                times=spent / target.epochs,
                times_seconds=by.hours * spent / by.epochs / target.hours,
            )
        )
    return found


def effects(experiments: Sequence[Experiment], data: str) -> list[Effect]:
    """Return the gain of each ingredient at the shortest schedule for which both of its rows were run."""
    own = {(each.row, each.epochs): each for each in experiments if each.data == data}
    return [_effect(ingredient, own, data) for ingredient in INGREDIENTS]


def _effect(ingredient: Ingredient, own: Mapping[tuple[str, int], Experiment], data: str) -> Effect:
    # Table 1 has two rows of DETR-DC5, published at 500 and at 50 epochs; here it is one recipe.
    with_it, without = (_recipe_row(name) for name in (ingredient.with_it, ingredient.without))
    common = sorted(epochs for row, epochs in own if row == with_it and (without, epochs) in own)
    differences: list[float] = []
    if common:
        first, second = (
            {run.seed: run.metrics["AP"] for run in own[row, common[0]].runs if run.metrics["AP"] >= 0}
            for row in (with_it, without)
        )
        differences = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
    mean = fmean(differences) if differences else None
    spread = stdev(differences) if len(differences) > 1 else None
    return Effect(
        data=data,
        ingredient=ingredient.label,
        epochs=common[0] if differences else None,
        mean=mean,
        spread=spread,
        seeds=len(differences),
        published=ingredient.published,
        verdict=_verdict(differences, ingredient.published),
    )


def _recipe_row(name: str) -> str:
    return ROWS[name].recipe


def _verdict(differences: Sequence[float], published: float) -> Verdict:
    """Compare the sign of the differences with the published one. It counts as decided if chance would give
    it in less than 5 % of all cases: Student's one-sided t test of the seeds' differences."""
    if not differences:
        return "not run"
    if len(differences) == 1:
        return "one seed"
    if not _has_a_sign(differences):
        return "undecided"
    return "as published" if fmean(differences) * published > 0 else "not as published"


def _has_a_sign(differences: Sequence[float]) -> bool:
    error = stdev(differences) / len(differences) ** 0.5
    least = float(student.ppf(1 - CHANCE, len(differences) - 1)) * error
    result: bool = abs(fmean(differences)) > least
    return result


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
    """Write all tables with AP in percent, as mean ± standard deviation over seeds."""
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
    """Return the differences by object size between Deformable DETR and each DETR."""
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
    """Draw one curve; `longer` schedules than the row's shortest one are dashed."""
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

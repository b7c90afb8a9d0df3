"""What variants of a recipe add, from the JSON files of finished runs: paired by seed, against one of them.

    python -m experiments.paper compare experiments/results/small_data --into docs/small_data.md

Each data set has a table with a line per variant and number of epochs: AP and AP50 as mean ± standard
deviation over seeds, the CPU minutes of a run, and the difference in AP from the baseline with equal
epochs and with about equal CPU minutes. A difference is marked as perhaps chance unless chance would give its
sign in less than 5 % of all cases (Student's t test of the seeds' differences). `--into` puts the tables
between two markers of a Markdown file. Numbers come from the last evaluation of a run, on the split that
training evaluates on.

AP is a fraction in the files and in percent in the tables.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

from deformable_detr.cli.options import Parser
from deformable_detr.errors import UserError

from .claims import has_a_sign
from .finished import Experiment, group, read_results
from .markers import put_between

SAME_MINUTES = 0.12  # runs whose CPU minutes differ by less than this share count as equally long


def add_arguments(parser: Parser) -> None:
    parser.argument("results", "FOLDER", "The folder of JSON files that `queue` wrote.")
    parser.option("--baseline", str, "today", "The variant to compare the others with.", shown="NAME")
    parser.option(
        "--into", str | None, None, "A Markdown file with the two markers to write between.", shown="FILE"
    )


def run(arguments: Namespace) -> None:
    text = tables(group(read_results(Path(arguments.results))), arguments.baseline)
    if arguments.into is not None:
        put_between(Path(arguments.into), text)
    print(text)


def tables(experiments: Sequence[Experiment], baseline: str) -> str:
    """Return a Markdown table for each data set, without differences if the baseline was not run on it.

    Raises:
        UserError: if the baseline was run on no data set.
    """
    if all(each.row != baseline for each in experiments):
        raise UserError(f"there is no run of {baseline}: name a variant that was run.")
    parts = []
    for data in dict.fromkeys(each.data for each in experiments):
        own = [each for each in experiments if each.data == data]
        bases = [each for each in own if each.row == baseline]
        lines = [
            f"### {data}\n",
            "| variant | epochs | CPU minutes | seeds | AP | AP50 | equal epochs | equal minutes |",
            "|---|---|---|---|---|---|---|---|",
        ]
        lines += [_line(each, bases) for each in (*bases, *(each for each in own if each.row != baseline))]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _line(each: Experiment, bases: Sequence[Experiment]) -> str:
    epochs = next((base for base in bases if base.epochs == each.epochs), None)
    as_long = [base for base in bases if abs(_minutes(base) / _minutes(each) - 1) <= SAME_MINUTES]
    minutes = min(as_long, key=lambda base: abs(_minutes(base) - _minutes(each)), default=None)
    cells = [
        each.row,
        str(each.epochs),
        f"{_minutes(each):.0f}",
        str(len(each.runs)),
        _percent(each.values("AP")),
        _percent(each.values("AP50")),
        *(
            "-" if base is None or base.row == each.row else difference(each, base)
            for base in (epochs, minutes)
        ),
    ]
    return f"| {' | '.join(cells)} |"


def difference(each: Experiment, base: Experiment) -> str:
    """Return a string with the mean difference in AP, in percent, and whether it may be chance.

    The difference is taken over the seeds that both have; the string is "-" if there are none.
    """
    first, second = ({run.seed: run.metrics["AP"] for run in runs.runs} for runs in (each, base))
    values = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
    if not values:
        return "-"
    if len(values) == 1:
        return f"{100 * values[0]:+.1f} (one seed)"
    verdict = "" if has_a_sign(values) else ", perhaps chance"
    return f"{100 * fmean(values):+.1f} ± {100 * stdev(values):.1f}{verdict}"


def _minutes(each: Experiment) -> float:
    return fmean(60 * run.hours if run.cpu_minutes is None else run.cpu_minutes for run in each.runs)


def _percent(values: Sequence[float]) -> str:
    if not values:
        return "-"
    spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * fmean(values):.1f}{spread}"

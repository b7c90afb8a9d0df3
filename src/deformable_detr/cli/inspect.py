"""The command `deformable-detr inspect DATA`."""

from __future__ import annotations

from argparse import SUPPRESS, Namespace
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from ..config import Layout, RunConfig
from ..errors import UserError
from .options import Parser, add_data, add_device
from .settings import COMMON, add_recipe, add_settings, changes, recipe_names

if TYPE_CHECKING:
    from ..inspection import DataReport

SUMMARY = "report what is in DATA, and what is broken in it"
USUAL = "deformable_detr_lite"


def add_arguments(parser: Parser) -> None:
    parser.description = (
        "Report what is in DATA, what is broken in it, how the model of a recipe will see it, and what "
        f"training will cost. Recipes: {recipe_names()}."
    )
    add_data(parser)
    shown = add_recipe(parser, USUAL)
    parser.option(
        "--output",
        str | None,
        None,
        "Write a report to this .json or .html file.",
        shown="FILE",
        group=COMMON,
    )
    parser.flag("--strict", "Exit with code 2 if there are problems.", group=COMMON)
    parser.option("--format", Layout, SUPPRESS, "Short for --data.format.", to="data.format", group=COMMON)
    parser.option(
        "--images",
        Literal["decode", "headers", "no"],
        "decode",
        "How much of the image files to read: everything, only their headers, or nothing.",
        group=COMMON,
    )
    parser.flag("--forecast", "Run some updates and predict the time and memory of training.", group=COMMON)
    add_device(parser, COMMON)
    add_settings(parser, shown)


def run(arguments: Namespace) -> int:
    from rich.console import Console

    from ..inspection import check_output, inspect, print_forecast, print_report, write_inspection

    config, output, console = _config(arguments), arguments.output, Console()
    if output is not None:
        check_output(output)
    report = inspect(
        arguments.data, config, format=config.data.format, images=arguments.images, console=console
    )
    print_report(report, console)
    if output is not None:  # printed before the forecast, which may fail although the inspection succeeded
        write_inspection(report, output)
    if arguments.forecast:
        from ..training.forecast import forecast

        expected = forecast(arguments.data, config, format=config.data.format, device=arguments.device)
        report = replace(report, forecast=expected)
        print_forecast(report, console)
        if output is not None:
            write_inspection(report, output)
    if output is not None:
        print(f"written: {output}")
    _refuse_problems(report, arguments.data, arguments.strict or config.data.strict)
    return 0


def _config(arguments: Namespace) -> RunConfig:
    from ..config import override, recipe
    from ..training import resolve_config

    if arguments.config is None:
        base = recipe(arguments.recipe or USUAL)
    else:
        base = resolve_config(arguments.recipe, "", config=arguments.config)
    return override(base, changes(vars(arguments)))


def _refuse_problems(report: DataReport, data: str, strict: bool) -> None:
    if report.unusable:
        names = ", ".join(problem.where for problem in report.unusable)
        raise UserError(f"{data}: {names} cannot be used, for the reason above.")
    if strict and report.problem_count:
        raise UserError(f"--strict: {data} has {report.problem_count} problems, listed above: fix them.")

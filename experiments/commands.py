"""`python -m experiments.paper WHAT …` and `python -m experiments.benchmark WHAT …`: each WHAT is a module
with two functions, `add_arguments(parser)` and `run(arguments)`. Errors and exit codes are those of
`deformable-detr`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module

from jsonargparse import ArgumentParser, Namespace

from deformable_detr.cli.main import Command, execute
from deformable_detr.errors import UserError


def command_of(
    package: str, noun: str, summary: str, choices: Mapping[str, str], *, keeps_buffers: bool = True
) -> Command:
    """The command that runs one module of `package`.

    Args:
        package: the package whose modules are the choices, as in `experiments.paper`.
        noun: what a choice is called in messages.
        summary: one sentence on the package, for `--help`.
        choices: name of the module → what it shows.
        keeps_buffers: see `deformable_detr.system.allocator`. A benchmark also measures its peers and decides
            for itself.
    """
    program = f"python -m {package}"

    def build(typed: Sequence[str]) -> ArgumentParser:
        summaries = "; ".join(f"{name}: {each}" for name, each in choices.items())
        parser = ArgumentParser(
            prog=program,
            description=f"{summary} {summaries}.",
            usage=f"{program} WHAT [options]",
            default_env=False,
            exit_on_error=False,
            allow_abbrev=False,
        )
        parser.add_argument("what", metavar="WHAT", type=str, help=", ".join(choices))
        if typed and typed[0] in choices:
            import_module(f"{package}.{typed[0]}").add_arguments(parser)
        return parser

    def run(parser: ArgumentParser, chosen: Namespace) -> int:
        if chosen.what not in choices:
            raise UserError(f"there is no {noun} {chosen.what}: choose one of {', '.join(choices)}.")
        import_module(f"{package}.{chosen.what}").run(chosen)
        return 0

    return Command(summary, build, run, keeps_buffers)


def main(command: Command, package: str, arguments: Sequence[str] | None = None) -> int:
    """Run `command` on `arguments`, the process's own by default; returns the exit code."""
    return execute(command, f"python -m {package}", sys.argv[1:] if arguments is None else arguments)

"""`python -m experiments.paper WHAT …` and `python -m experiments.benchmark WHAT …`: each WHAT is a module
with two functions, `add_arguments(parser)` and `run(arguments)`. Errors and exit codes are those of
`deformable-detr`.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module

from deformable_detr.cli.main import execute
from deformable_detr.cli.options import Parser
from deformable_detr.errors import UserError
from deformable_detr.system.allocator import keep_large_buffers


@dataclass(frozen=True)
class Commands:
    """The modules of one package as commands.

    Attributes:
        package: the package's name, such as `experiments.paper`.
        noun: the word for a choice in messages.
        summary: one sentence on the package, for `--help`.
        choices: the summary of each module, by the module's name.
        keeps_buffers: True if large buffers are kept; see `deformable_detr.system.allocator`. A benchmark
            also measures its peers, so it makes this choice itself.
    """

    package: str
    noun: str
    summary: str
    choices: Mapping[str, str]
    keeps_buffers: bool = True

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """Run one choice, by default the one that the process's arguments name; return the exit code."""
        if self.keeps_buffers:
            keep_large_buffers()
        return execute(self.parser, self.run, sys.argv[1:] if arguments is None else arguments)

    def parser(self, typed: Sequence[str]) -> Parser:
        """Return the parser of the choice that the arguments `typed` name, or one that lists the choices.

        Raises:
            UserError: if there is no such choice.
        """
        chosen = typed[0] if typed and not typed[0].startswith("-") else None
        if chosen is not None and chosen not in self.choices:
            names = ", ".join(self.choices)
            raise UserError(f"there is no {self.noun} {chosen}: choose one of {names}.")
        parser = Parser(f"python -m {self.package}" + ("" if chosen is None else f" {chosen}"))
        summaries = "; ".join(f"{name}: {each}" for name, each in self.choices.items())
        parser.description = f"{self.summary} {summaries}."
        parser.usage = f"python -m {self.package} {chosen or 'WHAT'} [options]"
        parser.argument("what", "WHAT", f"Which {self.noun} to run.")
        if chosen is not None:
            import_module(f"{self.package}.{chosen}").add_arguments(parser)
        return parser

    def run(self, arguments: Namespace) -> int:
        import_module(f"{self.package}.{vars(arguments).pop('what')}").run(arguments)
        return 0


def add_output(parser: Parser, contents: str) -> None:
    """Add --output, the folder that an experiment writes `contents` to."""
    parser.option("--output", str, "runs/paper", f"The folder for {contents}.", shown="FOLDER")

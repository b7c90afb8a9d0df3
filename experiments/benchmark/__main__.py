"""`python -m experiments.benchmark WHAT …`, from a clone."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from experiments import commands

from . import BENCHMARKS

SUMMARY = "Time this package and its peers in one alternating run."
COMMAND = commands.command_of("experiments.benchmark", "benchmark", SUMMARY, BENCHMARKS, keeps_buffers=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one benchmark; returns the exit code."""
    return commands.main(COMMAND, "experiments.benchmark", arguments)


if __name__ == "__main__":
    sys.exit(main())

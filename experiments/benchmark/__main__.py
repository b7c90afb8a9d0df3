"""`python -m experiments.benchmark WHAT …`, from a clone."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from experiments.commands import Commands

from . import BENCHMARKS

SUMMARY = "Time this package and its peers in one alternating run."
COMMANDS = Commands("experiments.benchmark", "benchmark", SUMMARY, BENCHMARKS, keeps_buffers=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one benchmark, and return the exit code."""
    return COMMANDS.main(arguments)


if __name__ == "__main__":
    sys.exit(main())

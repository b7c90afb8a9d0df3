"""`python -m experiments.paper WHAT …`, from a clone."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from experiments.commands import Commands

from . import EXPERIMENTS

SUMMARY = "The paper's experiments."
COMMANDS = Commands("experiments.paper", "experiment", SUMMARY, EXPERIMENTS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one experiment, and return the exit code."""
    return COMMANDS.main(arguments)


if __name__ == "__main__":
    sys.exit(main())

"""Output that all benchmarks share: the machine, the rivals, tables, and the project's targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Goal:
    """A target: the value `must` counts as met, and `aim` is better. `measured` is None if a rival was not
    available; `at_least` means that larger is better."""

    name: str
    must: float
    aim: float
    measured: float | None
    at_least: bool

    @property
    def verdict(self) -> str:
        if self.measured is None:
            return "not measured"
        for limit, word in ((self.aim, "aim met"), (self.must, "met")):
            if self.measured >= limit if self.at_least else self.measured <= limit:
                return word
        return "MISSED"


def print_participants(
    console: Console, facts: Mapping[str, Any], peers: Mapping[str, str], missing: Mapping[str, str]
) -> None:
    """Print `facts` from `measure.machine`, and `peers` and `missing` from `measure.chosen_peers`."""
    console.print(f"{facts['cpu']}, {facts['cores']} cores, operator: {facts['operator']}")
    console.print(f"torch {facts['torch']}, commit {facts['commit']}, {facts['date']}")
    for name, version in peers.items():
        console.print(f"{name} {version}")
    for name, reason in missing.items():
        console.print(f"{name}: {reason}", soft_wrap=True)


def print_goals(console: Console, title: str, goals: Sequence[Goal]) -> None:
    rows = table(f"\n{title}", "", "must", "aim", "measured", "")
    for goal in goals:
        sign = "≥" if goal.at_least else "≤"
        measured = "-" if goal.measured is None else f"{goal.measured:.2f}"
        rows.add_row(goal.name, f"{sign} {goal.must:g}", f"{sign} {goal.aim:g}", measured, goal.verdict)
    console.print(rows)


def table(title: str, *columns: str) -> Table:
    """Build a table with names aligned to the left and numbers to the right."""
    empty = Table(title=title, title_justify="left", box=None, pad_edge=False, title_style="bold")
    empty.add_column(columns[0], no_wrap=True)
    for column in columns[1:]:
        empty.add_column(column, justify="right", no_wrap=True)
    return empty

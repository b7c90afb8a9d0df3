"""What a report is made from, and its sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..data.records import Split
from ..inference.detector import Detector
from ..run_folder.reading import History
from .accuracy import Accuracy, Mistake
from .pictures import Misses, Shown


@dataclass(frozen=True)
class Content:
    """Everything that a report shows.

    `history`: None for a model that is no run folder. `accuracy`: None without a split to measure on; then
    `misses` is None and `mistakes`, `false_positives` are empty. `model`, `data`: as a user names them in a
    command. `made`: machine and versions of the one who makes the report.
    """

    detector: Detector
    model: str
    data: str
    made: Mapping[str, Any]
    history: History | None
    accuracy: Accuracy | None
    misses: Misses | None
    mistakes: Mapping[Mistake, int]
    false_positives: Sequence[Shown]
    train_split: Split | None

    @property
    def splits(self) -> list[Split]:
        """What the data section describes: the training split, and the one that was measured on."""
        measured = None if self.accuracy is None else self.accuracy.split
        there = [split for split in (self.train_split, measured) if split is not None]
        same = len(there) == 2 and there[0].name == there[1].name
        return there[:1] if same else there


@dataclass(frozen=True)
class Section:
    """`anchor` names the section's template, report/ANCHOR.html, which draws `parts`; `link`: the section's
    name in the list of sections."""

    anchor: str
    link: str
    title: str
    parts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def place(self) -> tuple[str, str]:
        return self.anchor, self.link

"""What a report is made from, and its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..data.records import Split
from ..inference.detector import Detector
from ..run_folder.reading import History
from .accuracy import Accuracy, Mistake
from .pictures import Misses, Shown


@dataclass(frozen=True)
class Content:
    """All that a report says. `history`: None for a model that is no run folder. `accuracy`: None without a
    split to measure on; then `misses` is None and `mistakes`, `false_positives` are empty. `model`, `data`:
    as a user names them in a command. `made`: machine and versions of the one who makes the report."""

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
        found = [split for split in (self.train_split, measured) if split is not None]
        same = len(found) == 2 and found[0].name == found[1].name
        return found[:1] if same else found


@dataclass(frozen=True)
class Section:
    """`link`: its name in the list of parts; `body`: HTML."""

    anchor: str
    link: str
    body: str

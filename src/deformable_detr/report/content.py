"""The data that a report is built from, and its sections."""

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
    """The data that a report shows.

    Attributes:
        model, data: the names of the model and of the data, as a user writes them in a command.
        environment: the machine and the package versions with which the report is written.
        history: the history of the run; None if the model is not a run folder.
        accuracy: the measurements; None if there is no split to measure on. In that case, `misses` is None,
            and `mistakes` and `false_positives` are empty.
        misses: the stages at which objects were lost.
        mistakes: the number of false positives of each kind.
        false_positives: pictures of some of the false positives.
        train_split: the training split; None if the data have none.
    """

    detector: Detector
    model: str
    data: str
    environment: Mapping[str, Any]
    history: History | None
    accuracy: Accuracy | None
    misses: Misses | None
    mistakes: Mapping[Mistake, int]
    false_positives: Sequence[Shown]
    train_split: Split | None

    @property
    def splits(self) -> list[Split]:
        """The splits that the data section describes: the training split and the measured one.

        A split that is missing is left out, and one that is both is listed once.
        """
        measured = None if self.accuracy is None else self.accuracy.split
        splits = [split for split in (self.train_split, measured) if split is not None]
        same = len(splits) == 2 and splits[0].name == splits[1].name
        return splits[:1] if same else splits


@dataclass(frozen=True)
class Section:
    """One section of the page.

    Attributes:
        anchor: the section's anchor in the page, and the name of its template, report/ANCHOR.html.
        link: the section's name in the list of sections.
        title: the section's heading.
        parts: the values that the template draws.
    """

    anchor: str
    link: str
    title: str
    parts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def navigation_entry(self) -> tuple[str, str]:
        return self.anchor, self.link

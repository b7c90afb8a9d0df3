"""Messages that state how many of the images and objects of a data set cannot be used, and why."""

from __future__ import annotations

from collections import Counter

from ..records import Split
from . import NOTES


def most_is_lost(split: Split) -> str | None:
    """Return a sentence with the main reason if more than half of the listed objects or images are unusable.

    Otherwise, return None. Images or objects whose number was not counted are not considered.
    """
    objects = sum(map(len, split.images))
    counts = [(split.num_listed_images, len(split), "images"), (split.num_listed_objects, objects, "objects")]
    lost = [
        f"{listed - kept:,} of {listed:,} {what}"
        for listed, kept, what in counts
        if listed and kept * 2 < listed
    ]
    if not lost:
        return None
    return f"{' and '.join(lost)} of {split.name} ({split.source}) cannot be used{main_reason(split)}."


def main_reason(split: Split) -> str:
    """Return the end of a sentence that names the most frequent kind of problem and its first case.

    The result begins with a comma. It is empty if there is no problem except `NOTES`.
    """
    serious = [problem for problem in split.problems if problem.kind not in NOTES]
    if not serious:
        return ""
    kind, count = Counter(problem.kind for problem in serious).most_common(1)[0]
    first = next(problem for problem in serious if problem.kind == kind)
    times = f"{count:,} times " if count > 1 else ""
    return f", {times}because of {kind}, first in {first.where}: {first.message}"

"""Numbers and counts as pages and terminals show them."""

from __future__ import annotations

import math
import shlex
from typing import Any

NOT_AVAILABLE = "n/a"


def percent(value: float) -> str:
    """A share as a number from 0 to 100, or n/a if it does not exist (COCO's -1, or nan)."""
    return f"{100 * value:.1f}" if exists(value) else NOT_AVAILABLE


def metric(value: float) -> str:
    """A metric in [0, 1] with three decimals, or n/a if it does not exist (COCO's -1, or nan)."""
    return f"{value:.3f}" if exists(value) else NOT_AVAILABLE


def exists(value: float) -> bool:
    """COCO writes -1 for a metric of objects that the data do not have."""
    return math.isfinite(value) and value >= 0


def count(number: int, noun: str) -> str:
    """'1 class', '1,200 classes', '2 queries': nouns with a regular plural."""
    if number == 1:
        return f"1 {noun}"
    if noun.endswith("s"):
        return f"{number:,} {noun}es"
    return f"{number:,} {noun[:-1]}ies" if noun.endswith("y") else f"{number:,} {noun}s"


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"


def when(time: str) -> str:
    """A time in ISO 8601 and UTC, to the minute."""
    return f"{time[:16].replace('T', ' ')} UTC"


def command_line(*words: str) -> str:
    """A command that can be pasted into a shell, whatever the names in it are."""
    return shlex.join(["deformable-detr", *words])


def setting(value: Any) -> str:
    """The value of a setting, as YAML writes it."""
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value)


def printable(text: str) -> str:
    """Names come from files: none of their control characters reaches a page or a terminal."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}" for letter in text
    )

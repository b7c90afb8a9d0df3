"""Format numbers, counts and names for pages and terminals."""

from __future__ import annotations

import math
import shlex
import unicodedata
from collections.abc import Sequence
from typing import Any

NOT_AVAILABLE = "n/a"

# Categories of control characters, surrogates and separators of lines and paragraphs; then the marks that
# reorder the text after them.
_HIDDEN = frozenset({"Cc", "Cs", "Zl", "Zp"})
_REORDERING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def percent(value: float) -> str:
    """Format a fraction as a number from 0 to 100 with one decimal.

    The result is n/a if the fraction does not exist (COCO's -1, or nan).
    """
    return f"{100 * value:.1f}" if exists(value) else NOT_AVAILABLE


def metric(value: float) -> str:
    """Format a metric in [0, 1] with three decimals, or n/a if it does not exist (COCO's -1, or nan)."""
    return f"{value:.3f}" if exists(value) else NOT_AVAILABLE


def exists(value: float) -> bool:
    """Return whether a metric exists: it is finite and not negative.

    COCO's value is -1 if the data has no objects to measure it on.
    """
    return math.isfinite(value) and value >= 0


def count(number: int, noun: str) -> str:
    """Format a count of a noun with a regular plural: '1 class', '1,200 classes', '2 queries'."""
    if number == 1:
        return f"1 {noun}"
    if noun.endswith("s"):
        return f"{number:,} {noun}es"
    return f"{number:,} {noun[:-1]}ies" if noun.endswith("y") else f"{number:,} {noun}s"


def listed(names: Sequence[str], limit: int) -> str:
    """List the first `limit` names and count the others: 'cat, dog, … and 3 more'.

    Return 'none' if there are no names.
    """
    shown = ", ".join(names[:limit]) or "none"
    return shown if len(names) <= limit else f"{shown}, … and {len(names) - limit:,} more"


def duration(seconds: float) -> str:
    """Format a duration in seconds; from 90 seconds in minutes, and from 90 minutes in hours: '1.5 hours'."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"


def when(time: str) -> str:
    """Format an ISO 8601 time in UTC to the minute, such as '2026-01-31 12:00 UTC'."""
    return f"{time[:16].replace('T', ' ')} UTC"


def command_line(*words: str) -> str:
    """Return a deformable-detr command that can be pasted into a shell; words are quoted if necessary."""
    return shlex.join(["deformable-detr", *words])


def setting(value: Any) -> str:
    """Format the value of a setting: true or false, a number, a string, or the items of a list with commas.

    None and an empty list become 'none'.
    """
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value)


def one_line(text: object) -> str:
    """Return a string, such as the message of an error, on one line, with single spaces."""
    return " ".join(str(text).split())


def printable(text: str) -> str:
    r"""Escape all characters that could control a terminal, such as ESC as \x1b, except newlines.

    Names in data sets and models are not trusted: their control characters could clear the screen, and marks
    that reorder the following text could make one name look like another. Bytes of a file name that are not
    UTF-8 are shown by their value, such as \xe4.
    """
    if text.isprintable():
        return text
    return "".join(letter if letter == "\n" or _is_harmless(letter) else _escaped(letter) for letter in text)


def _is_harmless(letter: str) -> bool:
    return unicodedata.category(letter) not in _HIDDEN and letter not in _REORDERING


def _escaped(letter: str) -> str:
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:  # Python's spelling of a byte of a file name that is not UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"

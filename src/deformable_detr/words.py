"""Numbers, counts and names as pages and terminals show them."""

from __future__ import annotations

import math
import shlex
import unicodedata
from collections.abc import Sequence
from typing import Any

NOT_AVAILABLE = "n/a"

# Control characters, surrogates, separators of lines and paragraphs; marks that reorder the text after them.
_HIDDEN = frozenset({"Cc", "Cs", "Zl", "Zp"})
_REORDERING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


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


def listed(names: Sequence[str], most: int) -> str:
    """The first `most` names, and how many more there are: 'cat, dog, … and 3 more'."""
    shown = ", ".join(names[:most]) or "none"
    return shown if len(names) <= most else f"{shown}, … and {len(names) - most:,} more"


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
    r"""The text with whatever a terminal could obey shown as an escape: ESC as \x1b. Newlines stay.

    Names in data sets and models are other people's: control characters could clear the screen, and marks
    that reorder the text after them could make one name look like another. Bytes of a file name that are not
    UTF-8 are shown as they are: \xe4.
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

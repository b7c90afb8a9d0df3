"""Conversion of single values of annotation files, whose type and value are checked.

Exporters write the same number in several ways: pandas writes 1 as 1.0 and a missing value as NaN, JavaScript
tools write "1". Values with only one meaning are converted; for all others, the functions return None (a
message for boxes), so that the reader can report them.
"""

from __future__ import annotations

import json
import math
from typing import Any

_NO = frozenset({"", "0", "0.0", "false", "no", "nan", "none", "null"})
_HUGE = 10**300
_FLOATS = frozenset({float})
_YES = frozenset({"1", "1.0", "true", "yes"})


def whole_number(value: Any) -> int | None:
    """Return an id or a length: 7 for 7, 7.0, "7" or "7.0"; None unless it is a whole number of 64 bits."""
    # `type is`, because True is an int.
    if type(value) is str:
        value = number(value)
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and -(2**63) <= value < 2**63 else None


def length(value: Any) -> int | None:
    """Return a side of a picture in pixels; None unless it is a whole number from 1 to 2³¹ - 1."""
    found = whole_number(value)
    return found if found is not None and 0 < found < 2**31 else None


def number(value: Any) -> float | None:
    """Return a number, or the number that a string spells; None for anything else.

    NaN and infinity are accepted; True and False are not. Integers beyond ±10³⁰⁰ become ±10³⁰⁰, because a
    float could not hold all of them.
    """
    if type(value) is int:
        return _bounded(value)
    if type(value) is float:
        return value
    if type(value) is str and value.isascii() and "_" not in value:
        try:
            return float(value)
        except ValueError:
            return None
    return None


def is_missing(value: Any) -> bool:
    """Return True for None, and for NaN, which pandas writes for a missing value."""
    return value is None or (type(value) is float and math.isnan(value))


def flag(value: Any) -> bool | None:
    """Return the value of iscrowd or difficult as a bool; None unless it is 0, 1 or a word for one of them.

    A missing value is False.
    """
    if is_missing(value):
        return False
    if isinstance(value, int | float):
        return bool(value) if value in (0, 1) else None
    if isinstance(value, str):
        word = value.strip().lower()
        return False if word in _NO else True if word in _YES else None
    return None


def box_values(value: Any) -> list[float] | str:
    """Return the four numbers of a `bbox`, or a message that explains why they cannot be used.

    NaN and infinity are accepted.
    """
    if type(value) is str:  # pandas writes the whole list as text
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return "bbox must be a list of four numbers, [x, y, width, height], not a string"
    if is_missing(value) or value == []:
        return "no bbox"
    if not isinstance(value, list) or len(value) != 4:
        return "bbox must be a list of four numbers, [x, y, width, height]"
    if _FLOATS.issuperset(map(type, value)):  # fast path: a file may have millions
        return value
    numbers = [number(item) for item in value]
    sound = [item for item in numbers if item is not None]
    return sound if len(sound) == 4 else f"bbox {value!r:.80} must be made of numbers"


def _bounded(value: int) -> float:
    # JSON's integers are unbounded, but floats are not; the limits here are far outside every picture.
    return float(max(-_HUGE, min(_HUGE, value)))

from __future__ import annotations

import math
from typing import Any

import pytest

from deformable_detr.data.formats import values

NAN = float("nan")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (7, 7),
        (7.0, 7),
        ("7", 7),
        ("7.0", 7),
        (-1, -1),
        (0, 0),
        (2**63 - 1, 2**63 - 1),
        (2**63, None),
        (1e30, None),
        (7.5, None),
        ("7.5", None),
        ("seven", None),
        ("1_0", None),
        ("\N{ARABIC-INDIC DIGIT SEVEN}", None),
        ("", None),
        (True, None),
        (None, None),
        (NAN, None),
        ("nan", None),
        ([7], None),
    ],
)
def test_whole_numbers(value: Any, expected: int | None) -> None:
    assert values.whole_number(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (64, 64),
        ("64", 64),
        (64.0, 64),
        (0, None),
        (-3, None),
        (2**31, None),
        (NAN, None),
        (64.5, None),
        (True, None),
    ],
)
def test_lengths(value: Any, expected: int | None) -> None:
    assert values.length(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, False),
        (1, True),
        (1.0, True),
        (False, False),
        (True, True),
        ("0", False),
        ("1", True),
        ("False", False),
        ("true", True),
        ("", False),
        (None, False),
        (NAN, False),
        ("nan", False),
        (2, None),
        (-1, None),
        ("maybe", None),
        ([], None),
    ],
)
def test_flags(value: Any, expected: bool | None) -> None:
    assert values.flag(value) is expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([1, 2.5, "3", 4], [1, 2.5, 3, 4]),
        ("[1, 2, 3, 4]", [1, 2, 3, 4]),
        ([1, 2, 3], "four numbers"),
        ([1, 2, 3, None], "made of numbers"),
        ([1, 2, 3, True], "made of numbers"),
        ({"x": 1}, "four numbers"),
        ([], "no bbox"),
        (NAN, "no bbox"),
        (None, "no bbox"),
        ("1 2 3 4", "not a string"),
        ("[" * 100_000, "not a string"),
    ],
)
def test_boxes(value: Any, expected: list[float] | str) -> None:
    found = values.box_values(value)
    assert found == expected if isinstance(expected, list) else expected in found


def test_integers_without_bound_are_numbers() -> None:
    assert math.isfinite(values.number(10**400) or math.inf)

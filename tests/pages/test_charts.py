"""Charts: well-formed, escaped, their points where the numbers say."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deformable_detr.pages.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    MAX_POINTS,
    RIGHT,
    TOP,
    WIDTH,
    Bar,
    Line,
    Mark,
    axis_for,
    line_chart,
    sparkline,
    unit_axis,
    whole_axis,
)

EVIL = "<b> & \"quoted\" 'x'"


def parsed(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(f"<div>{text}</div>")


def points(text: str, kind: str) -> list[tuple[float, float]]:
    (path,) = [
        each
        for each in parsed(text).iter("path")
        if each.get("class") == kind and each.find("title") is not None
    ]
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", path.attrib["d"])]


def test_names_are_escaped() -> None:
    line = Line(EVIL, [0, 1], [0, 1], 0, dots=True)
    chart = parsed(
        line_chart([line, line], unit_axis(EVIL), unit_axis(EVIL), title=EVIL, marks=[Mark(0.5, EVIL)])
        + line_chart([], unit_axis("x"), unit_axis("y"), bars=[Bar(0, 1, 0.5, EVIL)], title=EVIL)
        + sparkline(np.ones(101), np.zeros(101), EVIL)
    )
    assert [each.get("aria-label") for each in chart.iter("svg") if each.get("role")] == [EVIL] * 3
    assert "".join(each.text or "" for each in chart.iter("text")).count(EVIL) == 3
    assert list(chart.iter("b")) == []


def test_points_are_where_the_numbers_say() -> None:
    chart = line_chart([Line("a", [0, 0.5, 1], [0, 1, 0.25], 3)], unit_axis("x"), unit_axis("y"), title="t")
    inner = HEIGHT - TOP - BOTTOM
    assert points(chart, "line c3") == [
        (LEFT, HEIGHT - BOTTOM),
        ((LEFT + WIDTH - RIGHT) / 2, TOP),
        (WIDTH - RIGHT, pytest.approx(TOP + 0.75 * inner, abs=0.06)),
    ]


def test_a_gap_breaks_the_line() -> None:
    chart = line_chart(
        [Line("a", [0, 0.3, 0.6, 1], [0, np.nan, 1, 1], 0)], unit_axis("x"), unit_axis("y"), title="t"
    )
    (path,) = [each for each in parsed(chart).iter("path") if each.get("class") == "line c0"]
    assert path.attrib["d"].count("M") == 2
    nothing = line_chart([Line("a", [0, 1], [np.nan] * 2, 0)], unit_axis("x"), unit_axis("y"), title="t")
    assert "nan" not in nothing


def test_long_lines_are_thinned_and_keep_their_end() -> None:
    y = np.linspace(0, 1, 5000)
    chart = line_chart([Line("a", y, y, 0)], unit_axis("x"), unit_axis("y"), title="t")
    found = points(chart, "line c0")
    assert len(found) == MAX_POINTS
    assert found[-1][0] == WIDTH - RIGHT


@given(st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), max_size=5))
def test_an_axis_holds_its_values(values: list[float]) -> None:
    axis = axis_for("y", values)
    assert axis.low < axis.high
    assert 2 <= len(axis.ticks) <= 12
    width = axis.high - axis.low
    assert all(axis.low - 1e-9 * width <= value <= axis.high + 1e-9 * width for value in [*values, 0.0])


@given(st.integers(0, 50), st.integers(0, 200_000))
def test_an_axis_of_whole_numbers(low: int, more: int) -> None:
    axis = whole_axis("epoch", low, low + more)
    assert axis.low < axis.high
    assert 1 <= len(axis.ticks) <= 12
    assert all(axis.low <= tick <= axis.high and tick == int(tick) for tick in axis.ticks)

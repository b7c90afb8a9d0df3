"""Charts as inline SVG. Their text can be searched, selected and read aloud, and they use the page's colours.

A chart is drawn 460 units wide, so that its text is readable on a phone, where it shrinks to about 350
pixels. A dot shows its value (`<title>`) when the pointer rests on it; this needs no script. This module
computes the charts, and the templates chart.svg and sparkline.svg draw them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from .templates import render

WIDTH, HEIGHT = 460, 280
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 46
MAX_POINTS = 240  # the maximum number of points of a line, of which more would not be visible


@dataclass(frozen=True)
class Axis:
    """An axis from `low` to `high` with the title `label`; it has numbers at the values `ticks`.

    `decimals` is the number of decimals of these numbers. None means as many as each number needs, and
    thousands (`10k`) from 10,000.
    """

    label: str
    low: float
    high: float
    ticks: Sequence[float]
    decimals: int | None = None

    def fraction(self, values: float | np.ndarray) -> np.ndarray:
        return (np.asarray(values, dtype=float) - self.low) / ((self.high - self.low) or 1.0)

    def text(self, value: float) -> str:
        if self.decimals is not None:
            return f"{value:.{self.decimals}f}"
        return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:g}"


@dataclass(frozen=True)
class Line:
    """A line of a chart. It is interrupted at points whose y is nan.

    Attributes:
        name: the line's name in the legend.
        x, y: the coordinates of its points in the units of the axes, of equal length.
        colour: the number of one of the page's colours; None means a faint line.
        dashed: True if the line is dashed.
        dots: True if a dot with a tooltip is drawn at each point.
    """

    name: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    colour: int | None = 0
    dashed: bool = False
    dots: bool = False


@dataclass(frozen=True)
class Mark:
    """A vertical line at the value `x` of the x axis, with the short label `text`."""

    x: float
    text: str


@dataclass(frozen=True)
class Bar:
    """A bar that extends from `start` to `end` along x and from the bottom of the chart to `height` along y.

    All three are in the units of the axes. `tooltip` is shown when the pointer rests on the bar.
    """

    start: float
    end: float
    height: float
    tooltip: str


def unit_axis(label: str) -> Axis:
    return Axis(label, 0.0, 1.0, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0), 1)


def axis_for(label: str, values: Sequence[float] | np.ndarray) -> Axis:
    """Return an axis with round ticks that includes zero and all finite values.

    The axis ends at 1 if there is no finite value except zero.
    """
    finite = np.asarray(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    low, high = float(finite.min(initial=0.0)), float(finite.max(initial=0.0))
    if high - low < 1e-9:
        high = low + 1.0
    step = _round_step((high - low) / 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [round(number * step, 12) for number in range(first, last + 1)]
    return Axis(label, ticks[0], ticks[-1], ticks)


def whole_axis(label: str, low: int, high: int) -> Axis:
    """Return an axis with whole numbers as ticks, for epochs or updates.

    The axis extends from `low` to `high`, or to `low` + 1 if `high` is not above `low`.
    """
    step = max(1, int(_round_step(max(high - low, 1) / 6)))
    first = low if step == 1 else 0
    ticks = [value for value in range(first, high + 1, step) if value >= low]
    return Axis(label, float(low), float(max(high, low + 1)), ticks)


def _round_step(minimum: float) -> float:
    magnitude = 10.0 ** math.floor(math.log10(minimum))
    steps = (magnitude * factor for factor in (1, 2, 5, 10))
    return float(next(step for step in steps if step >= minimum * 0.999))


def line_chart(
    lines: Sequence[Line],
    x: Axis,
    y: Axis,
    *,
    title: str,
    marks: Sequence[Mark] = (),
    bars: Sequence[Bar] = (),
    named: Sequence[Line] | None = None,
) -> Markup:
    """Return a chart as an SVG element.

    Args:
        lines: the lines, drawn over the bars.
        x, y: the axes.
        title: a description for readers who do not see the chart.
        marks: vertical lines with labels.
        bars: the bars of a histogram.
        named: the lines in the legend, which is omitted if there are fewer than two; None means all lines
            with a colour.
    """
    text = render(
        "chart.svg",
        plot=_Plot(x, y),
        title=title,
        marks=marks,
        bars=bars,
        lines=sorted(lines, key=lambda line: line.colour is not None),  # faint lines below
        named=[line for line in lines if line.colour is not None] if named is None else named,
    )
    return Markup(text)


def sparkline(curve: np.ndarray, dashed: np.ndarray, title: str) -> Markup:
    """Return a small SVG element for a table cell, with a solid and a dashed curve.

    `curve` (solid) and `dashed` contain at least three values in [0, 1] at equal distances along x; every
    second one is drawn. `title` describes the curves.
    """

    def path(values: np.ndarray) -> str:
        last = len(values) - 1
        return "M" + "L".join(
            f"{index / last * 68 + 1:.1f} {(1 - value) * 18 + 1:.1f}" for index, value in enumerate(values)
        )

    return Markup(render("sparkline.svg", curve=path(curve[::2]), dashed=path(dashed[::2]), title=title))


# ---------------------------------------------------------------- geometry for chart.svg


@dataclass(frozen=True)
class _Dot:
    x: str
    y: str
    text: str


@dataclass(frozen=True)
class _DrawnLine:
    path: str
    dots: Sequence[_Dot]


@dataclass(frozen=True)
class _Plot:
    """The conversion of data values to the chart's coordinates, formatted with one decimal."""

    x: Axis
    y: Axis
    width, height = WIDTH, HEIGHT
    left, right, top, bottom = LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM

    def across(self, value: float, shift: float = 0.0) -> str:
        return f"{self._across(value) + shift:.1f}"

    def down(self, value: float, shift: float = 0.0) -> str:
        return f"{self._down(value) + shift:.1f}"

    def is_right(self, value: float) -> bool:
        """Return True if `value` is so far to the right that its label must be drawn to its left."""
        return bool(self._across(value) > WIDTH * 0.6)

    def bar_width(self, bar: Bar) -> str:
        return f"{max(self._across(bar.end) - self._across(bar.start) - 2, 0.5):.1f}"

    def bar_height(self, bar: Bar) -> str:
        return f"{max(self._down(self.y.low) - self._down(bar.height), 0):.1f}"

    def drawn(self, line: Line) -> _DrawnLine:
        across, down = _thinned(np.asarray(line.x, dtype=float), np.asarray(line.y, dtype=float))
        path, dots, pen_down = "", [], False
        for left, top, at, value in zip(self._across(across), self._down(down), across, down, strict=True):
            if not math.isfinite(top):
                pen_down = False
                continue
            path += f"{'L' if pen_down else 'M'}{left:.1f} {top:.1f}"
            pen_down = True
            if line.dots:
                text = f"{line.name}: {value:.4g} at {self.x.label} {at:g}"
                dots.append(_Dot(f"{left:.1f}", f"{top:.1f}", text))
        return _DrawnLine(path, dots)

    def _across(self, values: float | np.ndarray) -> np.ndarray:
        return LEFT + self.x.fraction(values) * (self.right - LEFT)

    def _down(self, values: float | np.ndarray) -> np.ndarray:
        return TOP + (1 - self.y.fraction(values)) * (self.bottom - TOP)


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y of at most MAX_POINTS points, by averaging neighbouring points if there are more.

    The last point keeps its x, so that the line is not shortened.
    """
    if len(x) <= MAX_POINTS:
        return x, y
    parts = np.array_split(np.arange(len(x)), MAX_POINTS)
    means = [(x[part].mean(), y[part].mean()) for part in parts]
    means[-1] = (x[-1], y[parts[-1]].mean())
    return np.array([at for at, _ in means]), np.array([value for _, value in means])

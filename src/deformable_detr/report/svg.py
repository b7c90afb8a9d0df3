"""Charts as inline SVG: text stays text (to search, select and read aloud), colours follow the page's scheme.

A chart is drawn 460 wide, so that its letters are readable on a phone, where it shrinks to some 350 pixels.
Hovering a dot says its value (`<title>`), without a script. Everything that is not a number is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, HEIGHT = 460, 280
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 46
NUM_COLOURS = 8
MOST_POINTS = 240  # of a line: more than a screen shows


@dataclass(frozen=True)
class Axis:
    """`label` under (beside) it; values from `low` to `high`; `ticks` at which to write numbers."""

    label: str
    low: float
    high: float
    ticks: Sequence[float]
    decimals: int | None = None

    def fraction(self, values: np.ndarray) -> np.ndarray:
        return (np.asarray(values, dtype=float) - self.low) / ((self.high - self.low) or 1.0)

    def text(self, value: float) -> str:
        if self.decimals is not None:
            return f"{value:.{self.decimals}f}"
        return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:g}"


@dataclass(frozen=True)
class Line:
    """`colour`: number of a colour of the page, None for a faint line. `dots`: with a tooltip each. Points
    that are nan are left out, and the line is broken there."""

    name: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    colour: int | None = 0
    dashed: bool = False
    dots: bool = False


@dataclass(frozen=True)
class Mark:
    """A vertical line with a few words."""

    x: float
    text: str


def unit_axis(label: str) -> Axis:
    return Axis(label, 0.0, 1.0, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0), 1)


def axis_for(label: str, values: Sequence[float] | np.ndarray) -> Axis:
    """An axis with round ticks that holds zero and all values."""
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
    """Of epochs or updates."""
    step = max(1, int(_round_step(max(high - low, 1) / 6)))
    first = low if step == 1 else 0
    ticks = [value for value in range(first, high + 1, step) if value >= low]
    return Axis(label, float(low), float(max(high, low + 1)), ticks)


def _round_step(least: float) -> float:
    magnitude = 10.0 ** math.floor(math.log10(least))
    return float(next(magnitude * factor for factor in (1, 2, 5, 10) if magnitude * factor >= least * 0.999))


def line_chart(
    lines: Sequence[Line],
    x: Axis,
    y: Axis,
    *,
    title: str,
    marks: Sequence[Mark] = (),
    named: Sequence[Line] | None = None,
) -> str:
    """The chart, and below it a legend where there are several `named` lines (all that have a colour)."""
    parts = [_frame(x, y)]
    parts += [_mark(mark, x) for mark in marks]
    ordered = sorted(lines, key=lambda line: line.colour is not None)  # faint lines below
    parts += [_line(line, x, y) for line in ordered]
    if named is None:
        named = [line for line in lines if line.colour is not None]
    return _svg(parts, title) + legend(named)


def bar_chart(
    x: Axis,
    y: Axis,
    bars: Sequence[tuple[float, float, float, str]],
    lines: Sequence[Line] = (),
    *,
    title: str,
) -> str:
    """bars: (from, to, height, tooltip)."""
    parts = [_frame(x, y)]
    for start, end, height, tooltip in bars:
        left, right = (LEFT + float(x.fraction(np.array(value))) * _inner_width() for value in (start, end))
        top = _down(y, height)
        parts.append(
            f'<rect class="bar" x="{left + 1:.1f}" y="{top:.1f}" width="{max(right - left - 2, 0.5):.1f}" '
            f'height="{max(_down(y, y.low) - top, 0):.1f}"><title>{escape(tooltip)}</title></rect>'
        )
    parts += [_line(line, x, y) for line in lines]
    return _svg(parts, title) + legend([line for line in lines if line.colour is not None])


def legend(lines: Sequence[Line]) -> str:
    if len(lines) < 2:
        return ""
    items = "".join(
        f'<li><svg class="swatch" viewBox="0 0 22 8" aria-hidden="true"><path class="{_class(line)}" '
        f'd="M1 4H21"/></svg>{escape(line.name)}</li>'
        for line in lines
    )
    return f'<ul class="legend">{items}</ul>'


def sparkline(curve: np.ndarray, dashed: np.ndarray, title: str) -> str:
    """Two curves of values in [0, 1], as high as a line of a table."""

    def path(values: np.ndarray) -> str:
        last = len(values) - 1
        return "M" + "L".join(
            f"{index / last * 68 + 1:.1f} {(1 - value) * 18 + 1:.1f}" for index, value in enumerate(values)
        )

    return (
        f'<svg class="spark" viewBox="0 0 70 20" role="img" aria-label="{escape(title)}">'
        f'<title>{escape(title)}</title><path class="rule" d="M1 19H69"/>'
        f'<path class="line c1 dashed" d="{path(dashed[::2])}"/>'
        f'<path class="line c0" d="{path(curve[::2])}"/></svg>'
    )


# ---------------------------------------------------------------- parts


def _svg(parts: Sequence[str], title: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        + "".join(parts)
        + "</svg>"
    )


def _inner_width() -> float:
    return WIDTH - LEFT - RIGHT


def _across(axis: Axis, value: float) -> float:
    return LEFT + float(axis.fraction(np.array(value))) * _inner_width()


def _down(axis: Axis, value: float) -> float:
    return TOP + (1 - float(axis.fraction(np.array(value)))) * (HEIGHT - TOP - BOTTOM)


def _frame(x: Axis, y: Axis) -> str:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for tick in y.ticks:
        place = _down(y, tick)
        parts.append(f'<path class="rule" d="M{LEFT} {place:.1f}H{right}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 6}" y="{place + 4:.1f}" text-anchor="end">{y.text(tick)}</text>'
        )
    for tick in x.ticks:
        place = _across(x, tick)
        parts.append(f'<path class="rule" d="M{place:.1f} {bottom}v4"/>')
        parts.append(
            f'<text class="tick" x="{place:.1f}" y="{bottom + 18}" text-anchor="middle">{x.text(tick)}</text>'
        )
    middle = (LEFT + right) / 2
    parts.append(
        f'<text class="label" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x.label)}</text>'
    )
    upright = (TOP + bottom) / 2
    parts.append(
        f'<text class="label" x="12" y="{upright}" text-anchor="middle" '
        f'transform="rotate(-90 12 {upright})">{escape(y.label)}</text>'
    )
    return "".join(parts)


def _mark(mark: Mark, x: Axis) -> str:
    place = _across(x, mark.x)
    at_right = place > WIDTH * 0.6
    anchor, shift = ("end", -5) if at_right else ("start", 5)
    return (
        f'<path class="mark" d="M{place:.1f} {TOP}V{HEIGHT - BOTTOM}"/>'
        f'<text class="note" x="{place + shift:.1f}" y="{TOP + 11}" text-anchor="{anchor}">'
        f"{escape(mark.text)}</text>"
    )


def _class(line: Line) -> str:
    colour = "faint" if line.colour is None else f"c{line.colour % NUM_COLOURS}"
    return f"line {colour}" + (" dashed" if line.dashed else "")


def _line(line: Line, x: Axis, y: Axis) -> str:
    across, down = _thinned(np.asarray(line.x, dtype=float), np.asarray(line.y, dtype=float))
    pixels_x = LEFT + x.fraction(across) * _inner_width()
    pixels_y = TOP + (1 - y.fraction(down)) * (HEIGHT - TOP - BOTTOM)
    parts, path, pen_down = [], [], False
    for left, top in zip(pixels_x, pixels_y, strict=True):
        if not math.isfinite(top):
            pen_down = False
            continue
        path.append(f"{'L' if pen_down else 'M'}{left:.1f} {top:.1f}")
        pen_down = True
    if path:
        tooltip = f"<title>{escape(line.name)}</title>"
        parts.append(f'<path class="{_class(line)}" d="{"".join(path)}">{tooltip}</path>')
    if line.dots:
        colour = "faint" if line.colour is None else f"c{line.colour % NUM_COLOURS}"
        for left, top, at, value in zip(pixels_x, pixels_y, across, down, strict=True):
            if math.isfinite(top):
                text = escape(f"{line.name}: {value:.4g} at {x.label} {at:g}")
                parts.append(
                    f'<circle class="dot {colour}" cx="{left:.1f}" cy="{top:.1f}" r="3">'
                    f"<title>{text}</title></circle>"
                )
    return "".join(parts)


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of neighbours where there are more points than a screen shows; the last point stays."""
    if len(x) <= MOST_POINTS:
        return x, y
    parts = np.array_split(np.arange(len(x)), MOST_POINTS)
    means = [(x[part].mean(), y[part].mean()) for part in parts]
    means[-1] = (x[-1], y[parts[-1]].mean())
    return np.array([at for at, _ in means]), np.array([value for _, value in means])

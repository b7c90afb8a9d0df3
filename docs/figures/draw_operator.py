"""Draws docs/images/operator.png: what multi-scale deformable attention reads, and how the kernel does it.

python docs/figures/draw_operator.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, Rectangle

OUTPUT = Path(__file__).parent.parent / "images" / "operator.png"
QUERY, POINT, PIXEL, LINE = "#c1272d", "#1f5fa8", "#f2b84b", "#8a8f98"
REFERENCE = np.array([0.42, 0.55])  # in [0, 1] of every level
OFFSETS = np.array([[1.3, -0.9], [-1.7, 0.5], [0.6, 1.4], [2.1, 0.8]])  # in pixels of the level
WEIGHTS = np.array([0.5, 0.15, 0.25, 0.1])


def main() -> None:
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.4), width_ratios=[2.1, 1.15, 1.4], dpi=150)
    draw_levels(axes[0])
    draw_pixels(axes[1])
    draw_vectors(axes[2])
    for axis in axes:
        axis.set_axis_off()
        axis.set_aspect("equal", anchor="N")
    figure.tight_layout()
    figure.savefig(OUTPUT, bbox_inches="tight")
    print(OUTPUT)


def draw_levels(axis: Axes) -> None:
    """Three levels of a pyramid: the same reference on each, and K points around it."""
    axis.set_title("One query, one head: K points on each level", fontsize=10)
    left = 0.0
    for width, cell in ((12, 1.0), (6, 1.5), (3, 2.0)):
        height = -(-width * 3 // 4)  # rounded up, as strides do
        draw_grid(axis, left, 0.0, width, height, cell)
        reference = REFERENCE * (width, height)
        for offset, weight in zip(OFFSETS, WEIGHTS, strict=True):
            point = np.clip(reference + offset * min(1.0, width / 9), 0.1, np.array([width, height]) - 0.1)
            start, end = (np.array([left, 0.0]) + each * cell for each in (reference, point))
            axis.plot(*zip(start, end, strict=True), color=POINT, linewidth=0.9)
            axis.scatter(*end, s=20 + 140 * weight, color=POINT, zorder=3)
        axis.scatter(*(np.array([left, 0.0]) + reference * cell), marker="+", s=90, color=QUERY, zorder=4)
        axis.text(left, -0.9, f"{height} x {width}", fontsize=8, color=LINE)
        left += width * cell + 1.2
    axis.text(0, 10.6, "+  reference point    ●  sampling point, size = attention weight", fontsize=8)
    axis.set_xlim(-0.5, left)
    axis.set_ylim(-1.6, 11.4)


def draw_pixels(axis: Axes) -> None:
    """One sampling point between four pixel centres, with their bilinear weights."""
    axis.set_title("Across points: where each one falls", fontsize=10)
    draw_grid(axis, 0.0, 0.0, 4, 4, 1.0)
    fx, fy = 0.3, 0.6
    corner = np.array([1.5, 1.5])
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        weight = (fx if dx else 1 - fx) * (fy if dy else 1 - fy)
        axis.add_patch(Rectangle((1 + dx, 1 + dy), 1, 1, color=PIXEL, alpha=0.15 + 0.8 * weight, linewidth=0))
        axis.scatter(1.5 + dx, 1.5 + dy, s=8, color="black", zorder=3)
        factors = f"{'fx' if dx else '(1-fx)'}·{'fy' if dy else '(1-fy)'}"
        axis.text(1.5 + dx, 1.22 + dy, factors, ha="center", fontsize=5.5)
    point = corner + np.array([fx, fy])
    axis.scatter(*point, s=60, color=POINT, zorder=4)
    axis.plot([corner[0], point[0]], [point[1]] * 2, color=POINT, linestyle=":", linewidth=1)
    axis.plot([point[0]] * 2, [corner[1], point[1]], color=POINT, linestyle=":", linewidth=1)
    caption = """clamp, floor, fraction; four offsets, four weights,
each times the attention weight; outside: weight 0"""
    axis.text(0, -0.85, caption, fontsize=8)
    axis.set_xlim(-0.3, 4.5)
    axis.set_ylim(-1.3, 4.6)


def draw_vectors(axis: Axes) -> None:
    """The two layouts: a vector of points, then vectors of channels."""
    axis.set_title("Two kinds of vectors take turns", fontsize=10)
    draw_lanes(
        axis,
        5.2,
        ["p0", "p1", "p2", "p3", "p4", "p5", "p6", "p7"],
        POINT,
        "x of eight points, one instruction",
    )
    draw_lanes(
        axis, 3.9, ["w0", "w1", "w2", "w3", "w4", "w5", "w6", "w7"], POINT, "their weights for the pixel ↖"
    )
    axis.add_patch(FancyArrowPatch((0.5, 3.85), (0.5, 2.95), arrowstyle="->", mutation_scale=10, color=LINE))
    axis.text(0.75, 3.25, "point by point, pixel by pixel:", fontsize=8)
    lanes = ["d0", "d1", "d2", "d3", "d4", "d5", "…", "d31"]
    draw_lanes(axis, 2.0, lanes, PIXEL, "+= w0 · the row of pixel ↖: D channels")
    draw_lanes(axis, 0.4, lanes, QUERY, "sums of this query and head, in registers")
    axis.set_xlim(-0.2, 8.4)
    axis.set_ylim(-0.6, 6.8)


def draw_lanes(axis: Axes, y: float, names: list[str], color: str, label: str) -> None:
    for lane, name in enumerate(names):
        axis.add_patch(Rectangle((lane, y), 1, 0.7, facecolor=color, alpha=0.25, edgecolor=LINE))
        axis.text(lane + 0.5, y + 0.35, name, ha="center", va="center", fontsize=7)
    axis.text(0, y + 0.82, label, fontsize=8)


def draw_grid(axis: Axes, left: float, bottom: float, columns: int, rows: int, cell: float) -> None:
    for column in range(columns + 1):
        x = left + column * cell
        axis.plot([x, x], [bottom, bottom + rows * cell], color=LINE, linewidth=0.4)
    for row in range(rows + 1):
        y = bottom + row * cell
        axis.plot([left, left + columns * cell], [y, y], color=LINE, linewidth=0.4)


if __name__ == "__main__":
    main()

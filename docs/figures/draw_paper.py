"""Draws what the paper's figures 1, 2 and 4 explain, as docs/images/idea.png, module.png and pyramid.png.

    python docs/figures/draw_paper.py

Own drawings; letters as in the code: C channels, M heads, L levels, K points.
"""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Polygon

IMAGES = Path(__file__).parent.parent / "images"
INK, LINE = "#22252b", "#8a8f98"
QUERY, POINT, OBJECT = "#c1272d", "#1f5fa8", "#f2b84b"
HEADS = ("#1f5fa8", "#009e73", "#cc79a7")
SHEAR, FLAT = 0.55, 0.5  # of a map that lies in perspective


def main() -> None:
    for name, draw, size in (
        ("idea", draw_idea, (9.5, 4.3)),
        ("module", draw_module, (9.5, 4.6)),
        ("pyramid", draw_pyramid, (9.5, 4.2)),
    ):
        figure, axis = plt.subplots(figsize=size, dpi=130)
        draw(axis)
        axis.set_axis_off()
        axis.set_aspect("equal")
        figure.tight_layout(pad=0.3)
        figure.savefig(IMAGES / f"{name}.png", bbox_inches="tight", metadata={"Software": None})
        plt.close(figure)
        print(IMAGES / f"{name}.png")


# ---- Figure 1: the idea ----------------------------------------------------------------------------


def draw_idea(axis: Axes) -> None:
    """Stacks of maps before and after the encoder, and an object query that samples the second stack."""
    for left, title in ((0.0, "feature maps of the backbone"), (8.6, "memory: the same, after the encoder")):
        axis.text(left + 3.1, 7.9, title, ha="center", fontsize=9, color=INK)
        for level, (bottom, cells) in enumerate(((0.0, 8), (3.0, 4), (5.4, 2))):
            scale = (1.0, 0.78, 0.58)[level]
            plane(axis, left + 2.2 * (1 - scale), bottom, 4.4 * scale, cells)
    # Encoder: from a token of the finest map to points on all maps.
    token = on_plane(0.0, 0.0, 4.4, 0.52, 0.45)
    for level, (bottom, fractions) in enumerate(
        (
            (0.0, ((0.35, 0.25), (0.72, 0.6), (0.6, 0.2))),
            (3.0, ((0.4, 0.6), (0.65, 0.35))),
            (5.4, ((0.5, 0.5),)),
        )
    ):
        scale = (1.0, 0.78, 0.58)[level]
        for u, v in fractions:
            end = on_plane(2.2 * (1 - scale), bottom, 4.4 * scale, u, v)
            axis.plot(*zip(token, end, strict=True), color=POINT, linewidth=0.8, alpha=0.8)
            axis.scatter(*end, s=28, color=POINT, zorder=4)
    axis.scatter(*token, marker="s", s=46, color=QUERY, zorder=5)
    arrow(axis, (6.9, 3.7), (8.5, 3.7), "encoder\nself-attention")
    # Decoder: an object query samples the memory.
    query = np.array([18.4, 3.2])
    box(axis, query - (1.0, 0.55), 2.0, 1.1, "object\nquery", QUERY)
    for level, (bottom, fractions) in enumerate(
        (
            (0.0, ((0.62, 0.4), (0.8, 0.55), (0.7, 0.2))),
            (3.0, ((0.66, 0.5), (0.8, 0.3))),
            (5.4, ((0.7, 0.5),)),
        )
    ):
        scale = (1.0, 0.78, 0.58)[level]
        for u, v in fractions:
            end = on_plane(8.6 + 2.2 * (1 - scale), bottom, 4.4 * scale, u, v)
            axis.plot(*zip(query - (1.0, 0.0), end, strict=True), color=POINT, linewidth=0.8, alpha=0.8)
            axis.scatter(*end, s=28, color=POINT, zorder=4)
    axis.text(16.2, 0.15, "decoder\ncross-attention", ha="center", fontsize=8, color=LINE)
    arrow(axis, (19.5, 3.2), (20.5, 3.2), "")
    box(axis, (20.6, 2.65), 1.9, 1.1, "box,\nclass", OBJECT)
    axis.text(
        0, -1.0, "■ query, a token of one level     ● the few points it looks at, on all levels", fontsize=8.5
    )
    axis.set_xlim(-0.4, 22.8)
    axis.set_ylim(-1.5, 8.4)


def plane(axis: Axes, left: float, bottom: float, width: float, cells: int) -> None:
    """A map of cells x cells that lies in perspective."""
    corners = [on_plane(left, bottom, width, u, v) for u, v in ((0, 0), (1, 0), (1, 1), (0, 1))]
    axis.add_patch(Polygon(corners, facecolor="#eef3f9", edgecolor=LINE, linewidth=0.8))
    for step in range(1, cells):
        fraction = step / cells
        for ends in (((fraction, 0), (fraction, 1)), ((0, fraction), (1, fraction))):
            line = [on_plane(left, bottom, width, u, v) for u, v in ends]
            axis.plot(*zip(*line, strict=True), color=LINE, linewidth=0.35)


def on_plane(left: float, bottom: float, width: float, u: float, v: float) -> np.ndarray:
    return np.array([left + width * (u + SHEAR * v * 0.8), bottom + width * FLAT * v])


# ---- Figure 2: the module --------------------------------------------------------------------------


def draw_module(axis: Axes) -> None:
    """Query and reference → offsets and weights → sampled values → output."""
    box(axis, (0.0, 5.2), 2.3, 0.9, "query\nC channels", QUERY)
    box(axis, (0.0, 2.7), 2.3, 0.9, "reference\npoint (x, y)", QUERY)
    box(axis, (0.0, 0.2), 2.3, 0.9, "feature map\nC channels", LINE)
    box(axis, (3.4, 6.0), 2.3, 0.8, "linear, softmax", LINE)
    box(axis, (3.4, 4.5), 2.3, 0.8, "linear", LINE)
    box(axis, (3.4, 0.25), 2.3, 0.8, "linear", LINE)
    for start, end in (
        ((2.3, 5.75), (3.4, 6.4)),
        ((2.3, 5.55), (3.4, 4.9)),
        ((2.3, 0.65), (3.4, 0.65)),
        ((2.3, 3.15), (7.4, 2.9)),
        ((5.7, 0.65), (7.4, 1.3)),
    ):
        arrow(axis, start, end, "")
    axis.text(5.9, 6.55, "attention weights: M x K, sum 1 in each head", fontsize=8, color=INK)
    axis.text(5.9, 5.05, "sampling offsets: M x K", fontsize=8, color=INK)
    axis.plot([5.7, 14.85], [6.4, 6.4], color=INK, linewidth=0.9)
    arrow(axis, (14.85, 6.4), (14.85, 5.3), "")
    axis.plot([5.7, 9.6], [4.9, 4.9], color=INK, linewidth=0.9)
    arrow(axis, (9.6, 4.9), (9.6, 4.4), "")
    # The map with the points of each head.
    left, bottom, side = 7.5, 0.2, 4.2
    for step in range(9):
        at = step * side / 8
        axis.plot([left + at] * 2, [bottom, bottom + side], color=LINE, linewidth=0.35)
        axis.plot([left, left + side], [bottom + at] * 2, color=LINE, linewidth=0.35)
    centre = np.array([left + 2.15, bottom + 1.95])
    weights = ((0.5, 0.3, 0.2), (0.2, 0.6, 0.2), (0.34, 0.33, 0.33))
    for head, colour in enumerate(HEADS):
        angle = 2 * math.pi * head / len(HEADS) + 0.5
        for point in range(3):
            bend = angle + 0.35 * (point - 1)
            end = centre + (0.55 * (point + 1)) * np.array([math.cos(bend), math.sin(bend)])
            axis.plot(*zip(centre, end, strict=True), color=colour, linewidth=0.8)
            axis.scatter(*end, s=30 + 130 * weights[head][point], color=colour, zorder=4)
    axis.scatter(*centre, marker="+", s=120, color=QUERY, zorder=5)
    axis.text(left + side / 2, -0.45, "values of M = 3 heads, K = 3 points each", ha="center", fontsize=8)
    for head, colour in enumerate(HEADS):
        bottom_of = 4.3 - 1.55 * head
        box(
            axis,
            (13.2, bottom_of),
            3.3,
            1.0,
            f"head {head + 1}: weighted sum\nof K values (C/M)",
            colour,
        )
        arrow(axis, (11.8, bottom_of + 0.5 - 0.15 * (1 - head)), (13.2, bottom_of + 0.5), "")
        arrow(axis, (16.5, bottom_of + 0.5), (17.5, 3.25), "")
    box(axis, (17.5, 2.75), 2.1, 1.0, "concatenate,\nlinear", LINE)
    arrow(axis, (19.6, 3.25), (20.4, 3.25), "")
    box(axis, (20.4, 2.75), 2.0, 1.0, "output\nC channels", QUERY)
    axis.set_xlim(-0.3, 22.7)
    axis.set_ylim(-0.9, 7.3)


# ---- Figure 4: the pyramid -------------------------------------------------------------------------


def draw_pyramid(axis: Axes) -> None:
    """C3 to C5 by 1x1 convolutions, C6 by a strided 3x3 convolution, to four maps of 256 channels."""
    rows = (
        ("C3", "H/8 x W/8, 512", "1x1, stride 1", 3.6, 0.0),
        ("C4", "H/16 x W/16, 1024", "1x1, stride 1", 2.5, 2.0),
        ("C5", "H/32 x W/32, 2048", "1x1, stride 1", 1.7, 3.8),
        ("", "", "3x3, stride 2", 1.1, 5.4),
    )
    for index, (name, size, convolution, width, bottom) in enumerate(rows):
        height = 0.42 * width * 0.8
        middle = bottom + height / 2
        if name:
            slab(axis, 0.0 + (3.6 - width) / 2, bottom, width, height, "#eef3f9")
            axis.text(1.8, bottom - 0.34, f"{name}: {size}", ha="center", fontsize=8)
            arrow(axis, (0.0 + (3.6 + width) / 2 + 0.2, middle), (6.6, middle), "")
        else:
            start = rows[2][4] + 0.42 * rows[2][3] * 0.8 / 2
            axis.add_patch(
                FancyArrowPatch(
                    (2.8, start + 0.35),
                    (6.6, middle),
                    connectionstyle="arc3,rad=-0.25",
                    arrowstyle="-|>",
                    mutation_scale=9,
                    color=INK,
                    linewidth=0.9,
                )
            )
        box(axis, (6.7, middle - 0.36), 3.4, 0.72, f"{convolution},\ngroup norm", POINT)
        arrow(axis, (10.1, middle), (12.4 + (3.6 - width) / 2, middle), "")
        slab(axis, 12.5 + (3.6 - width) / 2, bottom, width, height, "#fbeecb")
        stride = 8 * 2**index
        axis.text(16.5, middle - 0.12, f"level {index + 1}: H/{stride} x W/{stride}, 256", fontsize=8)
    axis.text(1.8, 6.3, "backbone (ResNet)", ha="center", fontsize=9)
    axis.text(14.3, 6.3, "what the encoder reads", ha="center", fontsize=9)
    axis.text(
        0,
        -1.0,
        "No top-down path: deformable attention over all levels does what an FPN would.",
        fontsize=8.5,
    )
    axis.set_xlim(-0.3, 20.6)
    axis.set_ylim(-1.4, 6.8)


def slab(axis: Axes, left: float, bottom: float, width: float, height: float, colour: str) -> None:
    axis.add_patch(
        Polygon(
            [
                (left, bottom),
                (left + width * 0.82, bottom),
                (left + width, bottom + height),
                (left + width * 0.18, bottom + height),
            ],
            facecolor=colour,
            edgecolor=LINE,
            linewidth=0.9,
        )
    )


# ---- Parts -----------------------------------------------------------------------------------------


def box(
    axis: Axes, corner: tuple[float, float] | np.ndarray, width: float, height: float, text: str, colour: str
) -> None:
    x, y = float(corner[0]), float(corner[1])
    axis.add_patch(
        FancyBboxPatch(
            (x, y),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.12",
            facecolor=matplotlib.colors.to_rgba(colour, 0.14),
            edgecolor=colour,
            linewidth=1.0,
        )
    )
    axis.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=7.5, color=INK)


def arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], label: str) -> None:
    axis.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=9, color=INK, linewidth=0.9, shrinkA=0, shrinkB=0
        )
    )
    if label:
        middle = (start[0] + end[0]) / 2
        axis.text(middle, start[1] + 0.25, label, ha="center", va="bottom", fontsize=8, color=LINE)


if __name__ == "__main__":
    main()

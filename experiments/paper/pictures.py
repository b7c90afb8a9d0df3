"""The style of the paper's figures, which are written as PNG and SVG."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deformable_detr.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Distinguishable in print, in grey and for colour-blind readers (Okabe and Ito, 2008).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def new_figure(columns: int = 1) -> Figure:
    """Create `columns` panels side by side, each as wide as a column of a paper; no screen is needed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.5 * columns, 2.8), layout="constrained")
    for axes in figure.subplots(1, columns, squeeze=False)[0]:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(True, linewidth=0.4, alpha=0.5)
        axes.tick_params(labelsize=8)
    return figure


def save_figure(figure: Figure, beside: Path, dpi: int = 300) -> tuple[Path, Path]:
    """Write the figure to `beside` with the suffixes .png and .svg, with the same bytes each time.

    Return the two paths.
    """
    import matplotlib

    png, svg = beside.with_suffix(".png"), beside.with_suffix(".svg")
    with replacing(png) as draft:
        figure.savefig(draft, dpi=dpi, metadata={"Software": None})
    with (
        matplotlib.rc_context({"svg.hashsalt": "deformable_detr", "svg.fonttype": "none"}),
        replacing(svg) as draft,
    ):
        figure.savefig(draft, metadata={"Date": None})
    return png, svg

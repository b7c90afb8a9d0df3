"""Draw an `Explanation` as a figure in the style of the paper's figure 6.

Each of the best detections has its own panel. It shows the sampling points of all heads and levels, coloured
by attention weight, the reference around which they were sampled, and the box after each decoder layer; boxes
of later layers are drawn more strongly. For dense attention, a map of the weights replaces the points.

A place is a point of the picture for which the encoder's attention was requested. Letters: H and W height and
width of a picture.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from .trace import (
    Attention,
    AttentionMaps,
    Explanation,
    QueryTraces,
    SamplingPoints,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL_INCHES, MIN_INCHES = 2.6, 0.9  # a panel's long side; the minimum of its short side
GAP_INCHES, TITLE_INCHES, LEGEND_INCHES = 0.08, 0.19, 0.42
TITLE_SHARE = 0.95  # the share of a panel's width that the two sides of its title may fill
DPI = 200
CONTEXT, MAX_ZOOM = 2.0, 8.0
WEIGHTY = 0.25  # zoomed panels show all points with more than this share of the query's largest weight
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
WEIGHT_COLOURS = "turbo"  # from blue to red, as in the paper
BOX_COLOUR, PROPOSAL_COLOUR, OBJECT_COLOUR = "#35e055", "#ffd21f", "#ff3b30"


def draw(explanation: Explanation, *, layer: int = -1, most: int = 5) -> Figure:
    """Return a figure of the picture with its detections, and of their attention.

    Each of the best `most` detections has a panel, which is zoomed in so that its points can be
    distinguished. Each place has a panel for each level.

    Args:
        layer: the layer of the decoder (and of the encoder, for places) whose attention is drawn, from 0; -1
            means the last one.
        most: the maximum number of detections that get a panel.

    Raises:
        IndexError: if attention is drawn and there is no such layer.
    """
    image = explanation.detections.image
    assert image is not None
    shown = min(most, len(explanation))
    encoder = explanation.encoder
    num_levels = 0 if encoder is None else encoder.tokens.shape[1]
    num_encoder_panels = 0 if encoder is None else len(encoder.places) * num_levels
    attentions = [explanation.queries.attention.take(np.arange(shown))] if shown else []
    attentions += [encoder.attention] if encoder is not None else []
    max_weight = max((largest(attention, layer) for attention in attentions), default=1.0)
    figure, panels = grid(
        1 + shown + num_encoder_panels, image.shape[:2], legend_for=max_weight if attentions else None
    )

    _overview(panels[0], explanation, shown)
    for row, panel in enumerate(panels[1 : 1 + shown]):
        show_picture(panel, image)
        draw_query(panel, explanation.queries, row, layer=layer, max_weight=max_weight)
        zoom(panel, _surrounding(explanation.queries, row, layer, image.shape[:2]), image.shape[:2])
        name, score = explanation.detections.names[row], explanation.detections.scores[row]
        title(panel, f"{row + 1}  {name} {score:.2f}", f"query {explanation.queries.indices[row]}")
    if encoder is not None:
        for number, panel in enumerate(panels[1 + shown :]):
            place, level = divmod(number, num_levels)
            show_picture(panel, image)
            draw_attention(panel, encoder.attention, number, layer, max_weight)
            _cross(panel, encoder.centres[place, level])
            x, y = encoder.places[place]
            title(panel, f"encoder at {x:g},{y:g}", f"from level {level + 1} of {num_levels}")
    return figure


def _surrounding(queries: QueryTraces, row: int, layer: int, size: tuple[int, int]) -> np.ndarray:
    """Return the smallest xyxy box (4,) that contains a query's final box and its points with large weights.

    Points outside the picture do not count. WEIGHTY defines which weights in `layer` are large. For dense
    attention, the result is the final box. `size` is the (H, W) of the picture.
    """
    corners = queries.boxes_xyxy[row, -1].reshape(2, 2)
    if isinstance(queries.attention, SamplingPoints):
        locations, weights = queries.attention.locations[row, layer], queries.attention.weights[row, layer]
        inside = ((locations >= 0) & (locations <= np.array(size[::-1]))).all(-1)
        corners = np.concatenate([corners, locations[inside & (weights > WEIGHTY * weights.max())]])
    return np.concatenate([corners.min(0), corners.max(0)])


def _overview(panel: Axes, explanation: Explanation, shown: int) -> None:
    image = explanation.detections.image
    assert image is not None
    show_picture(panel, image)
    for row, box in enumerate(explanation.detections.boxes_xyxy):
        draw_box(panel, box, BOX_COLOUR, 0.9, alpha=1.0 if row < shown else 0.35)
        if row < shown:
            panel.text(
                float(np.clip(box[0], 0, image.shape[1])),
                float(np.clip(box[1], 0, image.shape[0])),
                f" {row + 1} ",
                fontsize=5.5,
                verticalalignment="top",
                bbox={"facecolor": BOX_COLOUR, "edgecolor": "none", "pad": 0.6},
            )
    number = len(explanation)
    title(panel, f"{number} detection{'s' * (number != 1)}", "")


def grid(
    num_panels: int,
    size: tuple[int, int],
    columns: int | None = None,
    legend_for: float | None = None,
    min_width: float = MIN_INCHES,
) -> tuple[Figure, list[Axes]]:
    """Create a figure of equal panels for pictures of `size` (H, W), each with room for a title.

    Args:
        columns: the number of panels in a row; None means a number that suits the aspect ratio of a panel.
        legend_for: the largest weight of the colour bar below the panels; None means no colour bar.
        min_width: the minimum width of a panel in inches, so that its title fits; the height grows in
            proportion.

    Returns:
        The figure, and its panels row by row.
    """
    # pyplot is avoided, because it keeps figures in memory and may need a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scale = PANEL_INCHES / max(size)
    height, width = (max(MIN_INCHES, side * scale) for side in size)
    if width < min_width:
        height, width = height * min_width / width, min_width
    if columns is None:
        columns = min(num_panels, max(1, round(math.sqrt(num_panels * height / width * 1.5))))
    rows = math.ceil(num_panels / columns)
    below = LEGEND_INCHES if legend_for is not None else GAP_INCHES
    total_width = columns * (width + GAP_INCHES) + GAP_INCHES
    total_height = rows * (height + TITLE_INCHES) + below
    figure = Figure(figsize=(total_width, total_height), dpi=DPI)
    FigureCanvasAgg(figure)
    panels = []
    for number in range(num_panels):
        row, column = divmod(number, columns)
        left = GAP_INCHES + column * (width + GAP_INCHES)
        bottom = total_height - (row + 1) * (height + TITLE_INCHES)
        panel = figure.add_axes(
            (left / total_width, bottom / total_height, width / total_width, height / total_height)
        )
        panel.set_axis_off()
        panels.append(panel)
    if legend_for is not None:
        _legend(figure, legend_for, (total_width, total_height))
    return figure, panels


def show_picture(panel: Axes, image: np.ndarray) -> None:
    """Draw a picture (H, W, 3) in muted colours, so that it fills the panel.

    The axes are in pixels of the picture, and pixel (0, 0) covers [0, 1] × [0, 1].
    """
    height, width = image.shape[:2]
    # The picture is greyed a little, because colour shows the weights.
    grey = image @ LUMA
    muted = (0.45 * image + 0.55 * grey[..., None]).astype(np.uint8)
    panel.imshow(muted, extent=(0, width, height, 0), aspect="auto", interpolation="bilinear")
    panel.set_xlim(0, width)
    panel.set_ylim(height, 0)


def zoom(panel: Axes, box_xyxy: np.ndarray, size: tuple[int, int]) -> None:
    """Show the part of a picture around a box, in the picture's aspect ratio.

    The box fills at most 1 / CONTEXT of a side of the view, unless the view is the whole picture, and the
    magnification is at most MAX_ZOOM. `box_xyxy` is (4,), in pixels, and `size` is the (H, W) of the picture.
    """
    extent, low, high = np.array(size[::-1]), box_xyxy[:2], box_xyxy[2:]
    share = min(1.0, float((CONTEXT * (high - low) / extent).max()))
    view = extent * max(share, 1 / MAX_ZOOM)
    start = np.clip((low + high) / 2 - view / 2, 0, extent - view)
    panel.set_xlim(start[0], start[0] + view[0])
    panel.set_ylim(start[1] + view[1], start[1])


def title(panel: Axes, left: str, right: str) -> None:
    """Write `left` and `right` above the two ends of a panel, in a font small enough for both to fit."""
    # A $ in a class name is not the start of a formula.
    common: dict[str, Any] = {"pad": 2.5, "parse_math": False}
    texts = {
        panel.set_title(left, loc="left", fontsize=7, **common): 7.0,
        panel.set_title(right, loc="right", fontsize=5.5, color="0.45", **common): 5.5,
    }
    needed = sum(text.get_window_extent().width for text in texts)
    available = TITLE_SHARE * panel.get_window_extent().width
    for text, size in texts.items():
        text.set_fontsize(size * min(1.0, available / max(1.0, needed)))


def draw_query(
    panel: Axes, queries: QueryTraces, row: int, *, layer: int = -1, max_weight: float | None = None
) -> None:
    """Draw a query's proposal, its box after each layer, and its reference and attention in `layer`.

    `row` is the index of the query in `queries`. The reference is drawn as a cross, at the centre if it is a
    box. `max_weight` is as for `draw_attention`.
    """
    draw_attention(panel, queries.attention, row, layer, max_weight)
    if queries.proposals is not None:
        draw_box(panel, queries.proposals.boxes_xyxy[row], PROPOSAL_COLOUR, 0.7, linestyle=(0, (3, 2)))
    boxes = queries.boxes_xyxy[row]
    for index, box in enumerate(boxes):
        age = (index + 1) / len(boxes)
        draw_box(panel, box, BOX_COLOUR, 1.4 if age == 1 else 0.8, alpha=0.25 + 0.75 * age**2)
    if queries.references:
        reference = queries.references[layer][row]
        if len(reference) == 4:
            reference = (reference[:2] + reference[2:]) / 2
        _cross(panel, reference)


def draw_attention(
    panel: Axes, attention: Attention, row: int, layer: int, max_weight: float | None = None
) -> None:
    """Draw the attention of one row in one layer.

    Sampling points are drawn for all heads and levels, with the largest weights on top. Dense attention is
    drawn as a map of the mean weights over the heads. `max_weight` is the weight that has the last colour of
    the scale; None means `largest(attention, layer)`.
    """
    max_weight = max_weight or largest(attention, layer)
    if isinstance(attention, AttentionMaps):
        height, width = attention.image_size
        weights = attention.upsampled(row, layer)
        panel.imshow(
            weights,
            extent=(0, width, height, 0),
            aspect="auto",
            cmap=WEIGHT_COLOURS,
            vmin=0,
            vmax=max_weight,
            alpha=0.75 * np.sqrt(np.clip(weights / max_weight, 0, 1)),
        )
        return
    locations = attention.locations[row, layer].reshape(-1, 2)
    weights = attention.weights[row, layer].ravel()
    order = weights.argsort()
    panel.scatter(
        locations[order, 0],
        locations[order, 1],
        c=weights[order],
        s=1.5 + 11 * np.sqrt(np.clip(weights[order] / max_weight, 0, 1)),
        cmap=WEIGHT_COLOURS,
        vmin=0,
        vmax=max_weight,
        linewidths=0.2,
        edgecolors=(0, 0, 0, 0.55),
        zorder=3,
    )


def draw_box(panel: Axes, box_xyxy: np.ndarray, colour: str, width: float, **style: Any) -> None:
    from matplotlib.patches import Rectangle

    x0, y0, x1, y1 = box_xyxy
    look = {"fill": False, "edgecolor": colour, "linewidth": width, "zorder": 4, **style}
    panel.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, **look))


def _cross(panel: Axes, point: np.ndarray) -> None:
    for colour, width in (("black", 2.0), (BOX_COLOUR, 1.1)):
        panel.plot(*point, "+", color=colour, markersize=7, markeredgewidth=width, zorder=5)


def largest(attention: Attention, layer: int) -> float:
    """Return the weight to draw in the last colour of the scale, computed from all rows in one layer.

    For sampling points, it is the 99.5th percentile, so that outliers do not darken the other points. For
    dense attention, it is the maximum of the means over the heads. It is always positive.
    """
    if isinstance(attention, SamplingPoints):
        weights = attention.weights[:, layer]
    else:
        weights = attention.weights[:, layer].mean(1)  # over the heads
        return float(max(weights.max(), np.finfo(np.float32).tiny))
    return float(max(np.quantile(weights, 0.995), np.finfo(np.float32).tiny))


def _legend(figure: Figure, max_weight: float, inches: tuple[float, float]) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    width, height = inches
    length = min(3.0, 0.6 * width)
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, max_weight), WEIGHT_COLOURS),
        cax=figure.add_axes(((width - length) / 2 / width, 0.27 / height, length / width, 0.06 / height)),
        orientation="horizontal",
    )
    bar.ax.tick_params(labelsize=5.5, length=2, width=0.4, pad=1.5)
    bar.outline.set_linewidth(0.4)
    bar.set_label("attention weight", fontsize=6, labelpad=1.5)

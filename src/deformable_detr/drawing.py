"""Draw labelled boxes on pictures, and encode pictures.

Drawing needs only Pillow and NumPy, and takes a few milliseconds, so it keeps up with the model.

Labels are placed so that, if possible, they hide no objects or other labels, even if boxes share a corner.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# The colours of neighbouring classes differ in hue and lightness. Further classes start again from the first.
PALETTE = (
    *("#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231", "#911eb4", "#46f0f0", "#f032e6", "#bcf60c"),
    *("#fabebe", "#008080", "#9a6324", "#e6beff", "#800000", "#aaffc3", "#808000", "#ffd8b1", "#000075"),
)
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
MIN_TEXT_SIZE = 11  # pixels; smaller text cannot be read
PAD = 2  # pixels between a label's text and its border
MAX_COVER = 0.5  # fraction of a box that a label may cover before the object counts as hidden
MAX_STEPS = 12  # label heights that a label may move to find room


def draw_boxes(
    picture: Image.Image, boxes_xyxy: np.ndarray, labels: Sequence[str], colours: Sequence[int]
) -> Image.Image:
    """Return a copy of an RGB picture on which boxes and their labels are drawn.

    Args:
        picture: the picture to draw on.
        boxes_xyxy: the N boxes, (N, 4), in pixels; parts outside the picture are cut off.
        labels: the text of each box. If space is limited, earlier labels get better positions.
        colours: each box's index into the palette, which starts again after its last colour.
    """
    scene = picture.copy()
    pen = ImageDraw.Draw(scene)
    width, height = scene.size
    text_size = max(MIN_TEXT_SIZE, round(0.6 * min(width, height) ** 0.5))  # 13 at 480 pixels, 33 at 3000
    thickness = max(1, round(text_size / 7))
    font = label_font(text_size)
    # Boxes may extend beyond the range of Pillow's coordinates.
    reach = np.array([width, height, width, height]) + thickness
    corners = np.clip(np.nan_to_num(boxes_xyxy).reshape(-1, 4), -thickness, reach).round().astype(int)
    palette = [PALETTE[colour % len(PALETTE)] for colour in colours]
    for box, colour in zip(corners, palette, strict=True):
        pen.rectangle(_ordered(box), outline=colour, width=thickness)
    positions = label_positions(corners, labels, font, (width, height))
    # The labels are drawn in reverse order, so that the first is on top if some overlap nevertheless.
    for position, label, colour in reversed(list(zip(positions, labels, palette, strict=True))):
        pen.rectangle(tuple(position), fill=colour)
        x, y = int(position[0]) + PAD, int(position[3]) - PAD - font.getmetrics()[1]
        pen.text((x, y), label, fill=text_colour(colour), font=font, anchor="ls")
    return scene


def _ordered(box: np.ndarray) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = (int(value) for value in box)
    return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)


def label_positions(
    corners: np.ndarray,
    labels: Sequence[str],
    font: ImageFont.FreeTypeFont,
    size: tuple[int, int],
) -> np.ndarray:
    """Return the rectangles of the labels, (N, 4) xyxy, which are inside the picture if it is large enough.

    A label is placed above, inside, below or next to its box, or moved further up or down, so that, if
    possible, it hides no object and no other label.

    Args:
        corners: the N boxes, (N, 4) xyxy, in whole pixels. Labels of earlier boxes are placed first.
        labels: the text of each box.
        font: the labels' font.
        size: (width, height) of the picture.
    """
    text_height = sum(font.getmetrics()) + 2 * PAD
    boxes = np.array([_ordered(box) for box in corners]).reshape(-1, 4)
    positions = np.zeros((len(boxes), 4), dtype=int)
    for index, (label, (x0, y0, x1, y1)) in enumerate(zip(labels, boxes, strict=True)):
        text_width = round(font.getlength(label)) + 2 * PAD
        near = [(x, y) for x in (x0, x1 - text_width) for y in (y0 - text_height, y0, y1)]
        near += [(x1, y0), (x0 - text_width, y0)]
        moved = [(x0, y0 + step * text_height) for step in range(1, MAX_STEPS)]
        moved += [(x0, y0 - (step + 1) * text_height) for step in range(1, MAX_STEPS)]
        for candidates in (near, near + moved):
            positions[index], hides = _clearest(
                candidates, (text_width, text_height), boxes, positions[:index], size
            )
            if not hides:
                break
    return positions


def _clearest(
    corners: Sequence[tuple[int, int]],
    extent: tuple[int, int],
    boxes: np.ndarray,
    taken: np.ndarray,
    size: tuple[int, int],
) -> tuple[np.ndarray, bool]:
    """Return the best rectangle, and whether it hides a box or covers a part of a label.

    The candidates start at `corners`, all have the (width, height) `extent`, and are kept inside the picture
    of the (width, height) `size`. A box is hidden if more than the fraction MAX_COVER of it is covered. The
    best rectangle hides the fewest of the N `boxes`, (N, 4). In case of a tie, it covers the smallest area of
    the M labels `taken`, (M, 4), and then the smallest shares of the boxes.
    """
    starts = np.array(corners)
    # A label is kept inside the picture. A picture that is smaller than the label shows its beginning.
    starts = starts.clip(0, np.maximum(0, np.array(size) - extent))
    rectangles = np.concatenate([starts, starts + extent], axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    shares = _shared_areas(rectangles, boxes) / np.maximum(1, areas)
    hidden = (shares > MAX_COVER).sum(axis=1)
    over_labels = _shared_areas(rectangles, taken).sum(axis=1)
    best = np.lexsort((shares.sum(axis=1), over_labels, hidden))[0]
    return rectangles[best], bool(hidden[best] or over_labels[best])


def _shared_areas(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the areas in pixels that N rectangles (N, 4) share with M rectangles (M, 4), as (N, M)."""
    left, top, right, bottom = first.T[:, :, None]
    widths = np.minimum(right, second[:, 2]) - np.maximum(left, second[:, 0])
    heights = np.minimum(bottom, second[:, 3]) - np.maximum(top, second[:, 1])
    areas: np.ndarray = widths.clip(0) * heights.clip(0)
    return areas


def encoded(picture: Image.Image, format: str, **options: Any) -> bytes:
    """Return a picture as the bytes of a file in a `format` of Pillow, such as "PNG".

    Python should write these bytes to the file, because Pillow writes some formats through the file's
    descriptor, and does not notice if the disk has room for only a part of the file. `options` are those of
    `PIL.Image.Image.save`.
    """
    buffer = BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


@cache
def label_font(size: int) -> ImageFont.FreeTypeFont:
    """Load the package's font, DejaVu Sans, `size` pixels high. Pillow's own font has only ASCII letters."""
    return ImageFont.truetype(BytesIO(_font_file()), size, layout_engine=ImageFont.Layout.BASIC)


@cache
def _font_file() -> bytes:
    return (files(__package__) / "fonts" / "DejaVuSans.ttf").read_bytes()


@cache
def text_colour(background: str) -> str:
    """Return the name of the colour of text on a `background` (#rrggbb): black if it is light, else white."""
    channels = (int(background[start : start + 2], 16) for start in (1, 3, 5))
    luma = sum(weight * channel for weight, channel in zip(LUMA, channels, strict=True))
    return "black" if luma > 140 else "white"

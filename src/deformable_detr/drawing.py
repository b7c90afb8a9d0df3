"""Labelled boxes on a picture, by Pillow alone: a few milliseconds, so that drawing keeps up with the model.

Labels are put where they hide no object and no other label: boxes that share a corner can all be read.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Far from each other in hue and lightness, so that neighbouring classes differ; then from the start again.
PALETTE = (
    *("#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231", "#911eb4", "#46f0f0", "#f032e6", "#bcf60c"),
    *("#fabebe", "#008080", "#9a6324", "#e6beff", "#800000", "#aaffc3", "#808000", "#ffd8b1", "#000075"),
)
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
LEAST_TEXT = 11  # pixels: the smallest that can be read
PAD = 2  # pixels between a label's text and its border
HIDDEN = 0.5  # of a box under a label: more, and the object is out of sight
STEPS = 12  # how many label heights a label may move to find room


def draw_boxes(
    picture: Image.Image, boxes_xyxy: np.ndarray, labels: Sequence[str], colours: Sequence[int]
) -> Image.Image:
    """A copy of an RGB picture with boxes and their labels.

    Args:
        boxes_xyxy: (N, 4) pixels; what reaches out of the picture is cut off.
        labels: the text of each box. Where room is short, those that come first have the better place.
        colours: of each box, a number into the palette.
    """
    scene = picture.copy()
    pen = ImageDraw.Draw(scene)
    width, height = scene.size
    text_size = max(LEAST_TEXT, round(0.6 * min(width, height) ** 0.5))  # 13 at 480 pixels, 33 at 3000
    thickness = max(1, round(text_size / 7))
    font = label_font(text_size)
    # Boxes may reach far out of the picture, where Pillow's coordinates end.
    reach = np.array([width, height, width, height]) + thickness
    corners = np.clip(np.nan_to_num(boxes_xyxy).reshape(-1, 4), -thickness, reach).round().astype(int)
    palette = [PALETTE[colour % len(PALETTE)] for colour in colours]
    for box, colour in zip(corners, palette, strict=True):
        pen.rectangle(_ordered(box), outline=colour, width=thickness)
    places = label_places(corners, labels, font, (width, height))
    # Backwards, so that the first stays on top where even so two labels overlap.
    for place, label, colour in reversed(list(zip(places, labels, palette, strict=True))):
        pen.rectangle(tuple(place), fill=colour)
        x, y = int(place[0]) + PAD, int(place[3]) - PAD - font.getmetrics()[1]
        pen.text((x, y), label, fill=text_colour(colour), font=font, anchor="ls")
    return scene


def _ordered(box: np.ndarray) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = (int(value) for value in box)
    return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)


def label_places(
    corners: np.ndarray,
    labels: Sequence[str],
    font: ImageFont.FreeTypeFont,
    size: tuple[int, int],
) -> np.ndarray:
    """(N, 4) rectangles for the labels: on top of the box, else inside, below, beside, or moved along it,
    until no object and no other label is hidden; all inside the picture where it is large enough."""
    text_height = sum(font.getmetrics()) + 2 * PAD
    boxes = np.array([_ordered(box) for box in corners]).reshape(-1, 4)
    places = np.zeros((len(boxes), 4), dtype=int)
    for index, (label, (x0, y0, x1, y1)) in enumerate(zip(labels, boxes, strict=True)):
        text_width = round(font.getlength(label)) + 2 * PAD
        near = [(x, y) for x in (x0, x1 - text_width) for y in (y0 - text_height, y0, y1)]
        near += [(x1, y0), (x0 - text_width, y0)]
        moved = [(x0, y0 + step * text_height) for step in range(1, STEPS)]
        moved += [(x0, y0 - (step + 1) * text_height) for step in range(1, STEPS)]
        for candidates in (near, near + moved):
            places[index], hides = _clearest(
                candidates, (text_width, text_height), boxes, places[:index], size
            )
            if not hides:
                break
    return places


def _clearest(
    corners: Sequence[tuple[int, int]],
    extent: tuple[int, int],
    boxes: np.ndarray,
    taken: np.ndarray,
    size: tuple[int, int],
) -> tuple[np.ndarray, bool]:
    """The first of the rectangles of one (width, height) that hide the fewest `boxes` (N, 4), of these the
    one that covers least of the labels in `taken` (M, 4), then of the boxes; and whether it hides any box or
    a part of a label."""
    starts = np.array(corners)
    # On the border rather than out of sight; a picture smaller than the label shows its beginning.
    starts = starts.clip(0, np.maximum(0, np.array(size) - extent))
    rectangles = np.concatenate([starts, starts + extent], axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    shares = _shared_areas(rectangles, boxes) / np.maximum(1, areas)
    hidden = (shares > HIDDEN).sum(axis=1)
    over_labels = _shared_areas(rectangles, taken).sum(axis=1)
    best = np.lexsort((shares.sum(axis=1), over_labels, hidden))[0]
    return rectangles[best], bool(hidden[best] or over_labels[best])


def _shared_areas(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(N, 4) and (M, 4) rectangles to (N, M) pixels."""
    left, top, right, bottom = first.T[:, :, None]
    widths = np.minimum(right, second[:, 2]) - np.maximum(left, second[:, 0])
    heights = np.minimum(bottom, second[:, 3]) - np.maximum(top, second[:, 1])
    areas: np.ndarray = widths.clip(0) * heights.clip(0)
    return areas


@cache
def label_font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with the package: Pillow's own font has no letters beyond ASCII."""
    return ImageFont.truetype(BytesIO(_font_file()), size, layout_engine=ImageFont.Layout.BASIC)


@cache
def _font_file() -> bytes:
    return (files(__package__) / "fonts" / "DejaVuSans.ttf").read_bytes()


@cache
def text_colour(background: str) -> str:
    """Black on light colours, white on dark ones."""
    channels = (int(background[start : start + 2], 16) for start in (1, 3, 5))
    luma = sum(weight * channel for weight, channel in zip(LUMA, channels, strict=True))
    return "black" if luma > 140 else "white"

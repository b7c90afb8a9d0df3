"""Write an explanation as one interactive HTML file, which works offline and can be used with the keyboard.

Hovering over a box highlights its points; sliders choose the layer, head, level and weight; a click on the
picture shows the encoder's attention from that point.

Numbers are stored as 16-bit integers in base64, so that a point takes six bytes; JSON takes about thirty.
Letters: R rows (queries).
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from PIL import Image

from ..inference.detector import Detector
from ..inference.pictures import Picture, read_picture
from ..inference.selection import Selection
from ..inference.trace import Attention, EncoderTraces, Explanation, SamplingPoints
from ..inference.trace_drawing import WEIGHT_COLOURS
from ..pages import data_url, render

SHOWN_SIDE = 1600  # pixels of the picture in the page; coordinates stay those of the original
NUM_COLOURS = 64
BUDGET = 600_000  # approximate limit for the points of all layers in a part of the page: about 5 MB
MIN_POINTS, MAX_POINTS = 12, 300  # limits for the number of encoder points


def page(
    detector: Detector,
    image: Picture,
    threshold: float | None = None,
    *,
    title: str,
    max_detections: int = 50,
) -> tuple[str, int]:
    """Return the page that explains a picture as HTML, and the number of detections that it shows.

    The page contains fewer detections than `max_detections` if each has very many points (dense attention).
    `title` is the title of the page; the other arguments are those of `Detector.explain`. Matplotlib, which
    provides the colours, must be installed.

    Raises:
        UserError: if the picture cannot be read, an option is out of range, the detector comes from an
            exported file, or the model's output is not finite.
    """
    picture = read_picture(image, detector.data.max_pixels)
    first = detector.explain(picture, threshold, max_detections=max_detections)
    points = first.queries.attention.weights[:1].size or 1
    shown = max(1, min(max_detections, BUDGET // points))
    encoder_points = (
        _grid_points((picture.height, picture.width), BUDGET // points)
        if detector.config.encoder_layers
        else ()
    )
    explanation = detector.explain(picture, threshold, max_detections=shown, at=encoder_points)
    selection = detector.selection(threshold)
    return explanation_page(explanation, selection, title), len(explanation)


def explanation_page(explanation: Explanation, selection: Selection, title: str) -> str:
    """Return the page of an explanation as HTML.

    The explanation must contain its picture. `selection` contains the minimum scores of its detections, which
    the page states, and `title` is the title of the page. Matplotlib must be installed.
    """
    image = explanation.detections.image
    assert image is not None
    return render(
        "explain.html",
        title=title,
        image=data_url(Image.fromarray(image), SHOWN_SIDE, quality=90),
        data=page_data(explanation, selection),
    )


def page_data(explanation: Explanation, selection: Selection) -> dict[str, Any]:
    """Return the data that the page's script (explain.js) reads, as JSON values."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    queries, encoder, detections = explanation.queries, explanation.encoder, explanation.detections
    attention = queries.attention
    dense = not isinstance(attention, SamplingPoints)
    shape = attention.weights.shape
    tokens, encoder_part = _encoder(encoder) if encoder is not None else ([], None)
    parts = [part for part in (attention if len(explanation) else None, encoder_part) if part is not None]
    max_weight = max((float(part.weights.max()) for part in parts), default=1.0)
    centres = [_centre(layer) for layer in queries.references]
    return {
        "image_size": list(detections.image_size),
        "threshold": selection.common,
        "thresholds": selection.in_words(),
        "heads": shape[2],
        "levels": 1 if dense else shape[3],
        "points": shape[3] * shape[4] if dense else shape[4],
        "grid": list(shape[3:5]) if dense else None,
        "most": max_weight,
        "colours": [to_hex(colormaps[WEIGHT_COLOURS](value)) for value in np.linspace(0, 1, NUM_COLOURS)],
        "decoder": _packed(attention, detections.image_size, max_weight),
        "encoder": None if encoder_part is None else _packed(encoder_part, detections.image_size, max_weight),
        "tokens": tokens,
        "detections": [
            {
                "name": detections.names[row],
                "score": round(float(detections.scores[row]), 4),
                "query": int(queries.indices[row]),
                "boxes": _rounded(queries.boxes_xyxy[row]),
                "references": [_rounded(layer[row]) for layer in centres],
                "proposal": None
                if queries.proposals is None
                else _rounded(queries.proposals.boxes_xyxy[row]),
            }
            for row in range(len(explanation))
        ],
    }


def _grid_points(size: tuple[int, int], number: int) -> list[tuple[float, float]]:
    """Return a grid of points (x, y) over a picture of `size` (height, width), in pixels, row by row.

    There are about `number` points, after `number` is limited to the range from MIN_POINTS to MAX_POINTS.
    """
    height, width = size
    number = min(MAX_POINTS, max(MIN_POINTS, number))
    columns = max(1, round((number * width / height) ** 0.5))
    rows = max(1, number // columns)
    return [
        ((column + 0.5) * width / columns, (row + 0.5) * height / rows)
        for row in range(rows)
        for column in range(columns)
    ]


def _encoder(encoder: EncoderTraces) -> tuple[list[list[float]], Attention]:
    """Return the distinct tokens of `encoder` as [level, x, y], and their attention in the same order.

    Levels count from 0, and (x, y) is the centre of the token's cell in pixels of the picture.
    """
    numbers, rows = np.unique(encoder.tokens, return_index=True)
    levels = np.broadcast_to(np.arange(encoder.tokens.shape[1]), encoder.tokens.shape).ravel()[rows]
    centres = encoder.centres.reshape(-1, 2)[rows]
    assert len(numbers) == len(rows)
    return [
        [int(level), *_rounded(centre)] for level, centre in zip(levels, centres, strict=True)
    ], encoder.attention.take(rows)


def _packed(attention: Attention, size: tuple[int, int], max_weight: float) -> dict[str, Any]:
    """Return the number of layers, and the locations and weights as 16-bit fractions of 1 in base64.

    The fractions represent locations from -0.5 to 1.5 times the picture's `size` (height, width), and weights
    from 0 to `max_weight`; values beyond are clipped. For dense attention, the locations are an empty string.
    """
    height, width = size
    locations = ""
    if isinstance(attention, SamplingPoints):
        locations = _base64((attention.locations / np.array([width, height]) + 0.5) / 2)
    return {
        "layers": attention.weights.shape[1],
        "locations": locations,
        "weights": _base64(attention.weights / max_weight),
    }


def _base64(fractions: np.ndarray) -> str:
    whole = (np.nan_to_num(fractions).clip(0, 1) * 65535).round().astype("<u2")
    return base64.b64encode(whole.tobytes()).decode("ascii")


def _centre(references: np.ndarray) -> np.ndarray:
    """Return the centres (R, 2) of boxes (R, 4); points (R, 2) are returned unchanged."""
    return references if references.shape[-1] == 2 else (references[:, :2] + references[:, 2:]) / 2


def _rounded(values: np.ndarray) -> list[Any]:
    numbers: list[Any] = np.asarray(values, dtype=np.float64).round(2).tolist()
    return numbers

"""Figure 5: which pixels each number of a prediction depends on, as pictures and as numbers.

    python -m experiments.paper figure5 MODEL IMAGE… --output runs/paper [--threshold 0.4] [--most 3]

According to the paper, its figure shows that x and width depend on the left and right border of the object,
y and height on the top and bottom border, and the score on the pixels inside. `figure5.json` has the numbers
to check that: the mean gradient norm in bands along these borders and inside, for each of the five.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from statistics import fmean

import numpy as np

from deformable_detr.cli.options import Parser
from deformable_detr.errors import UserError
from deformable_detr.explain.gradient import TERMS, Gradients, draw_gradients, gradients
from deformable_detr.inference.loading import load

from .one_picture import add_picture_arguments, pictures_of, write_figures

CAPTION = (
    "Norm of the gradient of x, y, width, height and score of a detection with respect to each pixel, "
    "brightest where it is largest, each panel on its own scale."
)
REGIONS = ("left_right", "top_bottom", "inside", "outside")
BAND = 0.15  # half width of a band, as a fraction of the box's side


def add_arguments(parser: Parser) -> None:
    add_picture_arguments(parser, most=3)


def run(arguments: Namespace) -> None:
    images = pictures_of(arguments)
    detector = load(arguments.model, arguments.device)
    figures, entries, all_regions = [], [], []
    for image in images:
        result = gradients(detector, image, arguments.threshold, max_detections=arguments.most)
        if not len(result.detections):
            raise UserError(f"nothing is detected in {image} above {arguments.threshold}: lower --threshold.")
        figures.append(draw_gradients(result))
        detections = []
        for row in range(len(result.detections)):
            name, score = str(result.detections.names[row]), float(result.detections.scores[row])
            regions = regions_of(result, row)
            all_regions.append(regions)
            detections.append({"name": name, "score": round(score, 4), "mean_gradient": regions})
            print(f"{image.name}: {name} {score:.2f}: " + "; ".join(map(_in_words, regions.items())))
        entries.append({"image": str(image), "detections": detections})
    print(CAPTION)
    mean = {
        term: {name: round(fmean(each[term][name] for each in all_regions), 3) for name in REGIONS}
        for term in TERMS
    }
    write_figures("figure5", arguments, figures, entries, {"detections": len(all_regions), **mean})


def regions_of(result: Gradients, row: int) -> dict[str, dict[str, float]]:
    """Return, for each term of one detection, the mean gradient norm along the left and right border, along
    the top and bottom border, inside the object and outside it, each divided by the mean of the whole
    picture."""
    height, width = result.detections.image_size
    h, w = result.norms.shape[-2:]
    x0, y0, x1, y1 = result.detections.boxes_xyxy[row].tolist()
    x, y = (np.arange(w) + 0.5) * (width / w), (np.arange(h) + 0.5) * (height / h)
    # A band is at least a pixel wide as the model sees it.
    reach_x, reach_y = max(BAND * (x1 - x0), width / w), max(BAND * (y1 - y0), height / h)
    across = (x > x0 - reach_x) & (x < x1 + reach_x)
    down = (y > y0 - reach_y) & (y < y1 + reach_y)
    near_sides = (np.abs(x - x0) < reach_x) | (np.abs(x - x1) < reach_x)
    near_ends = (np.abs(y - y0) < reach_y) | (np.abs(y - y1) < reach_y)
    places = (
        np.outer(down & ~near_ends, near_sides),
        np.outer(near_ends, across & ~near_sides),
        np.outer(down & ~near_ends, across & ~near_sides),
        ~np.outer(down, across),
    )
    found = {}
    for term, norms in zip(TERMS, result.norms[row], strict=True):
        mean = max(float(norms.mean()), float(np.finfo(np.float32).tiny))
        found[term] = {
            name: round(float(norms[where].mean()) / mean, 3) if where.any() else 0.0
            for name, where in zip(REGIONS, places, strict=True)
        }
    return found


def _in_words(item: tuple[str, Mapping[str, float]]) -> str:
    term, regions = item
    strongest = max(regions, key=lambda name: regions[name])
    return f"{term} {strongest.replace('_', '/')} ({regions[strongest]:.1f} x the mean)"

"""Measure the drift of an exported file from the PyTorch model on pictures, and compare it with bounds.

Letters: B batch size; H, W height and width of the picture as the model sees it; Q queries.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..classification import ClassificationScheme
from ..inference.backend import Backend
from ..inference.detector import Detector
from ..structures import ImageBatch, Predictions

# For int8, a box counts only if its score in PyTorch is at least CONFIDENT, or one of the BEST highest in its
# picture.
CONFIDENT = 0.3
BEST = 5


@dataclass(frozen=True)
class Bounds:
    """The maximum accepted drifts (differences from the PyTorch model), inclusive.

    Attributes:
        box: the maximum drift of a box's centre coordinate, width or height, as a fraction of the picture's
            side.
        score: the maximum drift of a class score, in [0, 1].
        ap: the maximum loss of average precision, in [0, 1].
    """

    box: float
    score: float
    ap: float


FLOAT32 = Bounds(box=1e-3, score=1e-3, ap=1e-3)
INT8 = Bounds(box=0.05, score=0.15, ap=0.02)


@dataclass(frozen=True)
class CheckedPicture:
    """A picture on which the two models are compared.

    Attributes:
        name: the name of the picture's file, or words like "drawn picture 0".
        sha256: the hash of the file, or of the pixels if the picture was drawn.
        size: the (height, width) of the original picture.
        model_size: the (height, width) of the picture as the model sees it.
        pixels: the normalised picture, (3, H, W).
    """

    name: str
    sha256: str
    size: tuple[int, int]
    model_size: tuple[int, int]
    pixels: Tensor

    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "pixels"}


@dataclass(frozen=True)
class Drift:
    """The maximum differences between an exported file and the PyTorch model, over all queries and pictures.

    A difference is NaN if the logits have different shapes, or if one of the two values is NaN.

    Attributes:
        logit: the maximum difference of a logit.
        score: the maximum difference of a class score.
        box: the maximum difference of a box's centre coordinate, width or height, as a fraction of the
            picture's side.
        confident_box: like `box`, but only over boxes with a high score in PyTorch (see CONFIDENT and BEST).
        worst: for each of these maxima, by its name, the name of the batch in which it occurred; an empty
            string if the maximum is 0.
    """

    logit: float
    score: float
    box: float
    confident_box: float
    worst: dict[str, str]


def measure(
    detector: Detector, exported: Backend, plain: Backend, pictures: Sequence[CheckedPicture]
) -> tuple[Drift, list[tuple[int, int, int]]]:
    """Measure the drift on each picture, and on a batch of the first picture and a part of the last one.

    The pictures of that batch differ in size, so that it has padding. In two-stage models, the queries of the
    exported file are first put in the order of the PyTorch model's.

    Args:
        detector: the detector that is exported.
        exported: the backend that runs the exported file.
        plain: the backend that runs the PyTorch model.
        pictures: the pictures, of which there must be at least one.

    Returns:
        The maximum drift over all these batches, and the (number of pictures, height, width) of each batch.
    """
    first, last = pictures[0], pictures[-1]
    _, H, W = last.pixels.shape
    batches = [(picture.name, [picture.pixels]) for picture in pictures]
    batches.append(
        (
            f"{first.name} and a part of {last.name}",
            [first.pixels, last.pixels[:, : 3 * H // 4, : 3 * W // 4]],
        )
    )
    largest = dict.fromkeys(("logit", "score", "box", "confident_box"), 0.0)
    worst = dict.fromkeys(largest, "")
    shapes = []
    for name, pixels in batches:
        images = ImageBatch.from_images(pixels)
        shapes.append((len(images), *images.pixels.shape[2:]))
        expected, actual = plain(images), exported(images)
        if detector.config.two_stage:
            actual = _in_the_order_of(expected, actual, detector.classification)
        for output, value in _differences(expected, actual, detector.classification).items():
            if value > largest[output] or math.isnan(value):  # NaN counts as the maximum, and stays it
                largest[output] = value
                worst[output] = name
    return Drift(**largest, worst=worst), shapes


def _differences(
    expected: Predictions, actual: Predictions, classification: ClassificationScheme
) -> dict[str, float]:
    if actual.logits.shape != expected.logits.shape:
        return dict.fromkeys(("logit", "score", "box", "confident_box"), float("nan"))
    scores = classification.scores(expected.logits)  # (B, Q, classes)
    best = scores.amax(-1)  # (B, Q)
    rank = best.argsort(dim=1, descending=True).argsort(dim=1)
    confident = (best >= CONFIDENT) | (rank < BEST)
    boxes = (actual.boxes_cxcywh - expected.boxes_cxcywh).abs().amax(-1)
    return {
        "logit": float((actual.logits - expected.logits).abs().max()),
        "score": float((classification.scores(actual.logits) - scores).abs().max()),
        "box": float(boxes.max()),
        "confident_box": float(boxes[confident].max()),
    }


def _in_the_order_of(
    expected: Predictions, actual: Predictions, classification: ClassificationScheme
) -> Predictions:
    """Return `actual` with its queries reordered so that each matches a query of `expected`, one to one.

    The sum of the distances between matched queries is minimal. The order may differ, because queries from
    proposals are sorted by objectness, and two with nearly equal values may be swapped. If the shapes differ,
    `actual` is returned unchanged.
    """
    if actual.logits.shape != expected.logits.shape:
        return actual
    orders = []
    points = _as_points(expected, classification), _as_points(actual, classification)
    for one, other in zip(*points, strict=True):
        distance = torch.nan_to_num(torch.cdist(one, other), nan=1e9).numpy()
        orders.append(torch.from_numpy(linear_sum_assignment(distance)[1]))
    order = torch.stack(orders)[..., None]
    return Predictions(
        actual.logits.gather(1, order.expand_as(actual.logits)),
        actual.boxes_cxcywh.gather(1, order.expand_as(actual.boxes_cxcywh)),
    )


def _as_points(predictions: Predictions, classification: ClassificationScheme) -> Tensor:
    return torch.cat([predictions.boxes_cxcywh, classification.scores(predictions.logits)], dim=-1)


def complaints(drift: Drift, ap: tuple[float, float] | None, bounds: Bounds, precision: str) -> list[str]:
    """Return a clause for an error message for each drift that exceeds its bound; an empty list if none does.

    A drift of NaN exceeds any bound. With the `precision` int8, only boxes with a high score in PyTorch count
    (see CONFIDENT and BEST). `ap` is the average precision of the PyTorch model and of the exported one; None
    means that it was not measured.
    """
    box, where = (drift.box, "box") if precision == "fp32" else (drift.confident_box, "confident_box")
    problems = []
    if not box <= bounds.box:
        problems.append(
            f"boxes drifted by {box:.2g} of the picture's side ({drift.worst[where]}), {bounds.box:g} allowed"
        )
    if not drift.score <= bounds.score:
        problems.append(
            f"scores drifted by {drift.score:.2g} ({drift.worst['score']}), {bounds.score:g} allowed"
        )
    if ap is not None and not ap[0] - ap[1] <= bounds.ap:
        problems.append(f"AP fell from {ap[0]:.4f} to {ap[1]:.4f}, by more than {bounds.ap:g}")
    return problems


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_pixels(picture: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(picture).tobytes()).hexdigest()


def measured(drift: Drift, ap: tuple[float, float] | None) -> dict[str, Any]:
    """Return the drift in the form that the certificate uses.

    `ap` is the average precision of the PyTorch model and of the exported one; None leaves it out.
    """
    content: dict[str, Any] = asdict(drift)
    if ap is not None:
        content["ap"] = {"pytorch": ap[0], "exported": ap[1]}
    return content

"""How far an exported file is from the PyTorch model, on pictures, and whether that is near enough.

Letters: B batch, H, W what the model sees, Q queries.
"""

from __future__ import annotations

import hashlib
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

CONFIDENT = 0.3  # int8: boxes count where PyTorch's score is at least this, or among the best of the picture
BEST = 5


@dataclass(frozen=True)
class Bounds:
    """The largest drifts that are accepted. `box`: of a coordinate, as a fraction of the picture's side.
    `score`: of a class's score. `ap`: of average precision, what the exported file has less."""

    box: float
    score: float
    ap: float


FLOAT32 = Bounds(box=1e-3, score=1e-3, ap=1e-3)
INT8 = Bounds(box=0.05, score=0.15, ap=0.02)


@dataclass(frozen=True)
class CheckedPicture:
    """`name` and `sha256` of its file (of its pixels if it was drawn), (H, W) as it is and as the model sees
    it."""

    name: str
    sha256: str
    size: tuple[int, int]
    model_size: tuple[int, int]
    pixels: Tensor

    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "pixels"}


@dataclass(frozen=True)
class Drift:
    """Largest differences over all queries and pictures; `worst`: in which batch each of them was.

    `confident_box`: only over queries that PyTorch is confident of.
    """

    logit: float
    score: float
    box: float
    confident_box: float
    worst: dict[str, str]


def measure(
    detector: Detector, exported: Backend, plain: Backend, pictures: Sequence[CheckedPicture]
) -> tuple[Drift, list[tuple[int, int, int]]]:
    """Each picture alone, then the first with a part of the last, so that there is padding. Returns the drift
    and (B, H, W) of what was compared."""
    first, last = pictures[0], pictures[-1]
    _, H, W = last.pixels.shape
    batches = [(each.name, [each.pixels]) for each in pictures]
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
        wanted, found = plain(images), exported(images)
        if detector.config.queries == "proposals":
            found = _in_the_order_of(wanted, found, detector.classification)
        for output, value in _differences(wanted, found, detector.classification).items():
            if not value <= largest[output]:  # NaN is the largest of all
                largest[output] = value
                worst[output] = name
    return Drift(**largest, worst=worst), shapes


def _differences(
    wanted: Predictions, found: Predictions, classification: ClassificationScheme
) -> dict[str, float]:
    if found.logits.shape != wanted.logits.shape:
        return dict.fromkeys(("logit", "score", "box", "confident_box"), float("nan"))
    scores = classification.scores(wanted.logits)  # (B, Q, classes)
    best = scores.amax(-1)  # (B, Q)
    rank = best.argsort(dim=1, descending=True).argsort(dim=1)
    confident = (best >= CONFIDENT) | (rank < BEST)
    boxes = (found.boxes_cxcywh - wanted.boxes_cxcywh).abs().amax(-1)
    return {
        "logit": float((found.logits - wanted.logits).abs().max()),
        "score": float((classification.scores(found.logits) - scores).abs().max()),
        "box": float(boxes.max()),
        "confident_box": float(boxes[confident].max()),
    }


def _in_the_order_of(
    wanted: Predictions, found: Predictions, classification: ClassificationScheme
) -> Predictions:
    """Queries that are proposals come in the order of their objectness, and next to equal ones may swap: each
    is compared with the nearest, one to one."""
    if found.logits.shape != wanted.logits.shape:
        return found
    orders = []
    for one, other in zip(_as_points(wanted, classification), _as_points(found, classification), strict=True):
        distance = torch.nan_to_num(torch.cdist(one, other), nan=1e9).numpy()
        orders.append(torch.from_numpy(linear_sum_assignment(distance)[1]))
    order = torch.stack(orders)[..., None]
    return Predictions(
        found.logits.gather(1, order.expand_as(found.logits)),
        found.boxes_cxcywh.gather(1, order.expand_as(found.boxes_cxcywh)),
    )


def _as_points(predictions: Predictions, classification: ClassificationScheme) -> Tensor:
    return torch.cat([predictions.boxes_cxcywh, classification.scores(predictions.logits)], dim=-1)


def complaints(drift: Drift, ap: tuple[float, float] | None, bounds: Bounds, precision: str) -> list[str]:
    """What is over its bound, as parts of a sentence; a drift that is not a number is over any bound."""
    box, where = (drift.box, "box") if precision == "fp32" else (drift.confident_box, "confident_box")
    found = []
    if not box <= bounds.box:
        found.append(
            f"boxes drifted by {box:.2g} of the picture's side ({drift.worst[where]}), {bounds.box:g} allowed"
        )
    if not drift.score <= bounds.score:
        found.append(
            f"scores drifted by {drift.score:.2g} ({drift.worst['score']}), {bounds.score:g} allowed"
        )
    if ap is not None and not ap[0] - ap[1] <= bounds.ap:
        found.append(f"AP fell from {ap[0]:.4f} to {ap[1]:.4f}, by more than {bounds.ap:g}")
    return found


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_pixels(picture: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(picture).tobytes()).hexdigest()


def measured(drift: Drift, ap: tuple[float, float] | None) -> dict[str, Any]:
    """As the certificate says it."""
    content: dict[str, Any] = asdict(drift)
    if ap is not None:
        content["ap"] = {"pytorch": ap[0], "exported": ap[1]}
    return content

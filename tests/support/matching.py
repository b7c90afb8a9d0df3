"""Comparison of detections as sets: rounding, which depends on the processor, decides the order of detections
whose scores are nearly equal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from deformable_detr.structures import Predictions


class Scored(Protocol):
    """The fields of `Detections` that are compared: N boxes in pixels, scores, and names of classes."""

    @property
    def boxes_xyxy(self) -> np.ndarray: ...
    @property
    def scores(self) -> np.ndarray: ...
    @property
    def names(self) -> Sequence[str]: ...


def assert_same_detections(found: Scored, wanted: Scored, *, score: float, box: float) -> None:
    """Assert that one detection was found for each one wanted.

    A detection matches if it has the same name, and its score and corners (in pixels) are within the bounds.
    """
    assert len(found.scores) == len(wanted.scores) > 0
    other_name = np.array(wanted.names)[:, None] != np.array(found.names)
    scores = np.abs(np.asarray(wanted.scores)[:, None] - np.asarray(found.scores))
    corners = np.abs(np.asarray(wanted.boxes_xyxy)[:, None] - np.asarray(found.boxes_xyxy)).max(-1)
    excess = np.where(other_name, 1e9, np.maximum(scores / score, corners / box))
    pairs = linear_sum_assignment(excess)
    assert excess[pairs].max() <= 1, (scores[pairs].max(), corners[pairs].max())


def in_the_order_of(wanted: Predictions, found: Predictions) -> Predictions:
    """Return `found` with each query moved to the position of the most similar query of `wanted`."""
    orders = []
    for one, other in zip(_as_points(wanted), _as_points(found), strict=True):
        orders.append(torch.as_tensor(linear_sum_assignment(torch.cdist(one, other).numpy())[1]))
    order = torch.stack(orders)[..., None]
    return Predictions(
        found.logits.gather(1, order.expand_as(found.logits)),
        found.boxes_cxcywh.gather(1, order.expand_as(found.boxes_cxcywh)),
    )


def _as_points(predictions: Predictions) -> torch.Tensor:
    return torch.cat([predictions.boxes_cxcywh, predictions.logits.sigmoid()], -1).detach().double()

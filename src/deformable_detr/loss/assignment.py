"""Assignment of queries to objects: what all assigners have in common.

An assigner decides which object each query should represent. The Hungarian matcher (matcher.py) is the
paper's; others (assigners.py) give an object several queries.

Letters: B batch, Q queries, N objects of one image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import NonFiniteError
from ..structures import Predictions, Target

Layer = tuple[Predictions, Sequence[Target]]  # one layer's predictions and their targets


@dataclass(frozen=True)
class Match:
    """The matched pairs (query, object) of one layer, image after image, as two int64 tensors.

    `queries`: indices into the B·Q queries of a batch of B images with Q queries each. `objects`: indices
    into the concatenated objects of all images.
    """

    queries: Tensor
    objects: Tensor


class Assigner(ABC):
    """A function that returns one `Match` per layer."""

    @abstractmethod
    def __call__(self, layers: Sequence[Layer]) -> list[Match]:
        """Assign queries to objects, without gradients.

        Raises:
            NonFiniteError: if predictions or target boxes are not finite; the message names the image.
        """


class ImageAssigner(Assigner):
    """An assigner that decides image by image, on the CPU, from a matrix with a number for each pair."""

    @abstractmethod
    def matrix(self, logits: Tensor, boxes_cxcywh: Tensor, target: Target) -> Tensor:
        """Return a number, such as a cost, for each pair of the Q queries and N objects of one image, (Q, N).

        `logits` (Q, num_logits) and `boxes_cxcywh` (Q, 4) are the predictions for the image.
        """

    @abstractmethod
    def assign(self, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Choose pairs from `matrix` (Q, N); return the indices of their queries and of their objects."""

    @torch.no_grad()
    def __call__(self, layers: Sequence[Layer]) -> list[Match]:
        """Return one `Match` per layer.

        The CPU waits for a GPU only once: the matrices of all layers are transferred together, and so are the
        resulting indices.

        Raises:
            NonFiniteError: if predictions or target boxes are not finite; the message names the image.
        """
        on_device = [
            self.matrix(logits, boxes, target)
            for predictions, targets in layers
            for logits, boxes, target in zip(
                predictions.logits, predictions.boxes_cxcywh, targets, strict=True
            )
        ]
        matrices = iter(_to_host(on_device))
        pairs: list[np.ndarray] = []  # (2, pairs) per layer
        for predictions, targets in layers:
            images = [np.empty((2, 0), dtype=np.int64)]
            first_query = first_object = 0
            for target in targets:
                matrix = next(matrices)
                _require_finite(matrix, target)
                queries, objects = self.assign(matrix)
                images.append(np.stack([queries + first_query, objects + first_object]))
                first_query += predictions.logits.shape[1]
                first_object += len(target)
            pairs.append(np.concatenate(images, axis=1))
        return _on_device(pairs, on_device[0].device) if on_device else []


def _to_host(matrices: Sequence[Tensor]) -> list[np.ndarray]:
    """Copy the matrices to the CPU in one transfer."""
    if not matrices:
        return []
    numbers = torch.cat([matrix.flatten() for matrix in matrices]).cpu()
    parts = numbers.split([matrix.numel() for matrix in matrices])
    return [part.view(matrix.shape).numpy() for part, matrix in zip(parts, matrices, strict=True)]


def _on_device(pairs: Sequence[np.ndarray], device: torch.device) -> list[Match]:
    """Copy the pairs of all layers to the device in one transfer.

    For a GPU, they are copied from page-locked memory, so that the CPU does not have to wait.
    """
    indices = torch.from_numpy(np.concatenate(pairs, axis=1))
    if device.type == "cuda":
        indices = indices.pin_memory()
    indices = indices.to(device, non_blocking=True)
    parts = indices.split([layer.shape[1] for layer in pairs], dim=1)
    return [Match(queries, objects) for queries, objects in parts]


def _require_finite(matrix: np.ndarray, target: Target) -> None:
    if not np.isfinite(matrix).all():
        culprit = (
            "its target boxes" if not torch.isfinite(target.boxes_cxcywh).all() else "the predictions for it"
        )
        raise NonFiniteError(f"image {target.image_id}: {culprit} are not finite numbers")

"""Assignment of queries to objects: the base classes of all assigners.

An assigner decides which object each query should represent. The Hungarian matcher (matcher.py) is the
paper's; others (assigners.py) give an object several queries.

Letters: B batch, Q queries, N objects of an image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..errors import NonFiniteError
from ..structures import Predictions, Target

# The maximum number of pairs (query, object) that are computed together, if an image does not have more:
# the first stage has thousands of queries, and each intermediate result takes 4 bytes per pair.
PAIRS_AT_ONCE = 2**22
Layer = tuple[Predictions, Sequence[Target]]  # one layer's predictions and their targets


@dataclass(frozen=True)
class Match:
    """The matched pairs (query, object) of one layer, image after image, as two int64 tensors.

    Attributes:
        queries: the queries of the pairs, as indices into the B·Q queries of B images with Q queries each.
        objects: the objects of the pairs, as indices into the concatenated objects of all images.
    """

    queries: Tensor
    objects: Tensor


class Assigner(ABC):
    """The base class of assigners, which are called with the layers of a batch and return their matches."""

    @abstractmethod
    def __call__(self, layers: Sequence[Layer]) -> list[Match]:
        """Assign queries to objects, without gradients, and return one `Match` per layer.

        Args:
            layers: the predictions and the targets of each layer.

        Raises:
            NonFiniteError: if queries cannot be compared with the objects of an image, because predictions or
                target boxes are not finite; the message names the image.
        """


class ImageAssigner(Assigner):
    """An assigner that decides image by image, on the CPU, from a matrix with a number for each pair."""

    @abstractmethod
    def matrices(
        self, logits: Tensor, boxes_cxcywh: Tensor, labels: Tensor, objects_cxcywh: Tensor
    ) -> Tensor:
        """Return a number, such as a cost, for each pair of a query and an object of an image, (B, Q, N).

        `logits` (B, Q, num_logits) and `boxes_cxcywh` (B, Q, 4) are the predictions, in float32. `labels`
        (B, N) and `objects_cxcywh` (B, N, 4) are the objects. Images with fewer than N objects are padded;
        the numbers that are returned for the padding are not used.
        """

    @abstractmethod
    def assign(self, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Choose pairs of queries and objects from the `matrix` (Q, N) of one image.

        Return the indices of the pairs' queries and, in the same order, those of their objects.
        """

    @torch.no_grad()
    def __call__(self, layers: Sequence[Layer]) -> list[Match]:
        """Return one `Match` per layer.

        The matrices of all images and of all layers with the same targets are computed together, and the CPU
        waits for a GPU only once, for all of them.

        Raises:
            NonFiniteError: if the matrix of an image contains a number that is not finite, because of its
                predictions or target boxes; the message names the image.
        """
        matrices = self._matrices_on_host(layers)
        pairs: list[np.ndarray] = []  # (2, pairs) per layer
        for (predictions, targets), of_layer in zip(layers, matrices, strict=True):
            images = [np.empty((2, 0), dtype=np.int64)]
            first_query = first_object = 0
            for target, padded in zip(targets, of_layer, strict=True):
                matrix = padded[:, : len(target)]
                _require_finite(matrix, target)
                queries, objects = self.assign(matrix)
                images.append(np.stack([queries + first_query, objects + first_object]))
                first_query += predictions.logits.shape[1]
                first_object += len(target)
            pairs.append(np.concatenate(images, axis=1))
        return _on_device(pairs, layers[0][0].logits.device) if layers else []

    def _matrices_on_host(self, layers: Sequence[Layer]) -> list[np.ndarray]:
        """Return the matrices of each layer, (B, Q, N), with the N objects padded as in `matrices`."""
        groups: dict[int, list[int]] = {}  # the layers with the same targets, by the identity of these
        for index, (_, targets) in enumerate(layers):
            groups.setdefault(id(targets), []).append(index)
        computed = [
            self._padded_matrices([layers[index][0] for index in group], layers[group[0]][1])
            for group in groups.values()
        ]
        of_layer: dict[int, np.ndarray] = {}
        for group, matrices in zip(groups.values(), _to_host(computed), strict=True):
            ends = np.cumsum([layers[index][0].logits.shape[1] for index in group])
            of_layer.update(zip(group, np.split(matrices, ends[:-1], axis=1), strict=True))
        return [of_layer[index] for index in range(len(layers))]

    def _padded_matrices(self, predictions: Sequence[Predictions], targets: Sequence[Target]) -> Tensor:
        """Return the matrices of layers with the same targets, (B, ΣQ, N): all queries, layer after layer."""
        logits = torch.cat([each.logits.float() for each in predictions], dim=1)
        boxes = torch.cat([each.boxes_cxcywh.float() for each in predictions], dim=1)
        labels = pad_sequence([target.labels for target in targets], batch_first=True)
        objects = pad_sequence([target.boxes_cxcywh for target in targets], batch_first=True)
        images_at_once = max(1, PAIRS_AT_ONCE // max(1, logits.shape[1] * labels.shape[1]))
        parts = zip(*(each.split(images_at_once) for each in (logits, boxes, labels, objects)), strict=True)
        return torch.cat([self.matrices(*part) for part in parts])


def _to_host(tensors: Sequence[Tensor]) -> list[np.ndarray]:
    """Copy the tensors to the CPU, in one transfer, as arrays of the same shapes."""
    if not tensors:
        return []
    numbers = torch.cat([tensor.flatten() for tensor in tensors]).cpu()
    parts = numbers.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape).numpy() for part, tensor in zip(parts, tensors, strict=True)]


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

"""The interface of backends, which compute predictions with PyTorch, ONNX Runtime or OpenVINO."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..classification import ClassificationScheme
from ..structures import ImageBatch, Predictions
from .postprocess import Candidates, candidates_of

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class Backend(ABC):
    """The part of a detector that computes the last layer's predictions from padded pixels."""

    @abstractmethod
    def __call__(self, batch: ImageBatch) -> Predictions: ...

    def candidates(
        self, pixels: Sequence[Tensor | np.ndarray], classification: ClassificationScheme, k: int
    ) -> Candidates:
        """Return the k best pairs of query and class of each picture, or all pairs if there are fewer than k.

        `pixels` are normalised pictures (3, h, w) of any heights h and widths w; they are padded to a common
        size. `classification` defines the meaning of the logits.

        Raises:
            ValueError: if there is no picture.
            UserError: if an exported file cannot compute the batch.
        """
        import torch

        found = self(ImageBatch.from_images([torch.as_tensor(picture) for picture in pixels]))
        return candidates_of(found.logits, found.boxes_cxcywh, classification, k)

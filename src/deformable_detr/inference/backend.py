"""What a detector needs of a backend, whether PyTorch, ONNX Runtime or OpenVINO computes the predictions."""

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
    """Computes the last layer's predictions from padded pixels."""

    @abstractmethod
    def __call__(self, batch: ImageBatch) -> Predictions: ...

    def candidates(
        self, pixels: Sequence[Tensor | np.ndarray], classification: ClassificationScheme, k: int
    ) -> Candidates:
        """Return the k best pairs of query and class in normalised pictures (3, h, w), which are padded."""
        import torch

        found = self(ImageBatch.from_images([torch.as_tensor(picture) for picture in pixels]))
        return candidates_of(found.logits, found.boxes_cxcywh, classification, k)

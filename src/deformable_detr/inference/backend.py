"""What computes: padded pixels to the last layer's predictions. Everything else in a detector is the same
whether PyTorch, ONNX Runtime or OpenVINO does it."""

from __future__ import annotations

from abc import ABC, abstractmethod

from ..structures import ImageBatch, Predictions


class Backend(ABC):
    """Padded pixels to the last layer's predictions."""

    @abstractmethod
    def __call__(self, batch: ImageBatch) -> Predictions: ...

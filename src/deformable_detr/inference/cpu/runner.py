"""The runner for CPUs: an optimised replica of a plain model, and a check for changes to the plain model."""

from __future__ import annotations

import torch

from ...models import DetectionModel
from ...structures import ImageBatch, Predictions
from ..snapshot import Snapshot
from .build import optimise


class Runner:
    """A replica of a plain model on a CPU, which computes the last layer's predictions in `dtype`.

    `dtype` is float32 or bfloat16; boxes and references are always float32. The plain model is not changed by
    the runner; `is_current` reports whether something else has changed it.
    """

    def __init__(self, model: DetectionModel, dtype: torch.dtype = torch.float32):
        self._root = model
        self._seen = Snapshot(model)
        with torch.no_grad():
            self._model = optimise(model, dtype)

    def is_current(self, model: DetectionModel) -> bool:
        """Return True if this runner was built from `model` with its current weights."""
        return model is self._root and self._seen.still_holds()

    def __call__(self, batch: ImageBatch) -> Predictions:
        with torch.inference_mode():
            last: Predictions = self._model(batch).predictions[-1]
        return last

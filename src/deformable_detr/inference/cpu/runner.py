"""A plain model's optimised twin, and whether it is still one."""

from __future__ import annotations

import torch

from ...models import DetectionModel
from ...structures import ImageBatch, Predictions
from ..snapshot import Snapshot
from .build import optimise


class Runner:
    """The last layer's predictions of a plain model, on a CPU, computed in `dtype` (float32 or bfloat16).

    Boxes and what they start from are float32 always. The plain model is not changed; where it may have been
    since, ask `is_current`.
    """

    def __init__(self, model: DetectionModel, dtype: torch.dtype = torch.float32):
        self._root = model
        self._seen = Snapshot(model)
        with torch.no_grad():
            self._model = optimise(model, dtype)

    def is_current(self, model: DetectionModel) -> bool:
        """Whether `model` is what this runner was built from, with the same weights."""
        return model is self._root and self._seen.still_holds()

    def __call__(self, batch: ImageBatch) -> Predictions:
        with torch.inference_mode():
            last: Predictions = self._model(batch).predictions[-1]
        return last

"""A replica of a plain model on a GPU, with its CUDA graphs and a check for changes to the plain model."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from ...models import DetectionModel
from ...ops import DeformConv2d
from ...structures import ImageBatch, Predictions
from ..snapshot import Snapshot
from .build import optimise
from .graphs import CudaReplay, Function, Graphs, Inputs


class Runner:
    """A replica of a plain model on a GPU, which computes the last layer's predictions in `dtype`.

    The plain model is not changed by the runner; `is_current` reports whether something else has changed it.
    """

    def __init__(self, model: DetectionModel, device: torch.device, dtype: torch.dtype):
        self._root, self._device = model, device
        self._seen = Snapshot(model)
        with torch.no_grad():
            self._model = optimise(model, device, dtype)
        self._call: Function = self._compute
        if device.type == "cuda" and can_be_captured(self._model):
            with torch.cuda.device(device):
                record = partial(_record, torch.cuda.graph_pool_handle(), device)
            self._call = Graphs(self._compute, record)

    def is_current(self, model: DetectionModel) -> bool:
        """Return True if this runner was built from `model` with its current weights."""
        return model is self._root and self._seen.still_holds()

    def __call__(self, batch: ImageBatch) -> Predictions:
        with torch.inference_mode():
            logits, boxes = self._call(batch.pixels, batch.mask)
        return Predictions(logits, boxes)

    def _compute(self, pixels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        last = self._model(ImageBatch(pixels, mask).to(self._device)).predictions[-1]
        return last.logits, last.boxes_cxcywh


def can_be_captured(model: nn.Module) -> bool:
    """Return True if a CUDA graph can replay all of `model`.

    torchvision launches the kernels of deformable convolution outside the current stream. A graph therefore
    lacks them and replays old features, as was observed on an H100.
    """
    return not any(isinstance(module, DeformConv2d) for module in model.modules())


def _record(pool: object, device: torch.device, function: Function, inputs: Inputs) -> CudaReplay:
    with torch.cuda.device(device):
        return CudaReplay(function, tuple(each.to(device) for each in inputs), pool)

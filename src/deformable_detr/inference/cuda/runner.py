"""A plain model's replica on a GPU, with its graphs, and whether it is still one."""

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
    """The last layer's predictions of a plain model, on its device, computed in `dtype`.

    The plain model is not changed; ask `is_current` if it may have been since.
    """

    def __init__(self, model: DetectionModel, device: torch.device, dtype: torch.dtype):
        self._root, self._device = model, device
        self._seen = Snapshot(model)
        with torch.no_grad():
            self._model = optimise(model, dtype)
        self._call: Function = self._compute
        if device.type == "cuda" and can_be_captured(self._model):
            with torch.cuda.device(device):
                record = partial(_record, torch.cuda.graph_pool_handle(), device)
            self._call = Graphs(self._compute, record)

    def is_current(self, model: DetectionModel) -> bool:
        """Whether `model` is what this runner was built from, with the same weights."""
        return model is self._root and self._seen.still_holds()

    def __call__(self, batch: ImageBatch) -> Predictions:
        with torch.inference_mode():
            logits, boxes = self._call(batch.pixels, batch.mask)
        return Predictions(logits, boxes)

    def _compute(self, pixels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        last = self._model(ImageBatch(pixels, mask).to(self._device)).predictions[-1]
        return last.logits, last.boxes_cxcywh


def can_be_captured(model: nn.Module) -> bool:
    """Whether a CUDA graph of `model` replays all of it. torchvision launches the kernels of deformable
    convolution outside the current stream, so a graph lacks them and replays old features (seen on an H100).
    """
    return not any(isinstance(module, DeformConv2d) for module in model.modules())


def _record(pool: object, device: torch.device, function: Function, inputs: Inputs) -> CudaReplay:
    with torch.cuda.device(device):
        return CudaReplay(function, tuple(each.to(device) for each in inputs), pool)

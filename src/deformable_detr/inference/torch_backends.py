"""Backends that compute in PyTorch: the model itself, or a replica of it that was built for its device."""

from __future__ import annotations

from typing import Protocol

import torch

from ..models import DetectionModel
from ..structures import ImageBatch, Predictions
from . import cpu, cuda
from .backend import Backend


class TorchBackend(Backend):
    """A backend that runs the PyTorch model itself in evaluation mode.

    If `dtype` is a 16-bit type, the model runs under autocast.
    """

    def __init__(self, model: DetectionModel, device: torch.device, dtype: torch.dtype):
        self.model = model.to(device)
        self.device, self.dtype = device, dtype

    def __call__(self, batch: ImageBatch) -> Predictions:
        was_training = self.model.training
        self.model.eval()
        try:
            with (
                torch.inference_mode(),
                torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32),
            ):
                predictions: Predictions = self.model(batch.to(self.device)).predictions[-1]
        finally:
            self.model.train(was_training)
        return predictions


class Runner(Protocol):
    """A replica of a model that was rebuilt for speed, such as `cpu.Runner` or `cuda.Runner`."""

    def is_current(self, model: DetectionModel) -> bool: ...

    def __call__(self, batch: ImageBatch) -> Predictions: ...


class RunnerBackend(Backend):
    """A backend that runs a replica of the model, built for its device.

    The replica is built on the first call, and again on the first call after the model has changed.
    """

    def __init__(self, model: DetectionModel, device: torch.device, dtype: torch.dtype):
        self.model = model.to(device)
        self.device, self.dtype = device, dtype
        self._runner: Runner | None = None

    def __call__(self, batch: ImageBatch) -> Predictions:
        runner = self._runner
        if runner is None or not runner.is_current(self.model):
            self._runner = None  # two at once would take twice the memory
            self._runner = runner = self._build()
        return runner(batch)

    def _build(self) -> Runner:
        if self.device.type == "cpu":
            return cpu.Runner(self.model, self.dtype)
        return cuda.Runner(self.model, self.device, self.dtype)


def backend_for(model: DetectionModel, device: torch.device, dtype: torch.dtype) -> Backend:
    """Return the fastest backend for a device: a replica on a CPU or a CUDA GPU, otherwise the model itself.

    The backend computes in `dtype`. The model is moved to the device.
    """
    if device.type in ("cpu", "cuda"):
        return RunnerBackend(model, device, dtype)
    return TorchBackend(model, device, dtype)

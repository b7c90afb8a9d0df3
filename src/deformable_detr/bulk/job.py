"""The job of a worker: everything on which the rows of a picture depend."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError
from ..inference.detector import Detector
from ..inference.exported import is_exported
from ..inference.loading import load
from ..prediction.finding import Finder, with_views
from ..prediction.tiling import Tiling, finder_for
from ..system.machine import PACKAGE, versions_of

_LIBRARIES = (PACKAGE, "torch", "torchvision", "pillow", "numpy")  # a change of these may change rows


@dataclass(frozen=True)
class Job:
    """A model and the options of `predict_tables`; workers on other machines get a copy.

    Attributes that are not listed here are the arguments of `predict_tables`.

    Attributes:
        device: the device of each worker.
        threads: the number of threads of each worker. It is part of the job, because the rounding of sums of
            floats depends on it.
    """

    model: str
    device: str
    dtype: str = "fp32"
    threshold: float | None = None
    classes: tuple[str, ...] | None = None
    class_thresholds: dict[str, float] | None = None
    tiling: Tiling | None = None
    max_detections: int | None = None
    batch_size: int = 4
    max_pixels: int | None = None
    tta: bool | tuple[float, ...] = False
    threads: int = 1

    def load(self) -> Detector:
        """Set PyTorch's number of threads in this process, and load the detector.

        Raises:
            UserError: if the model cannot be loaded, or the device is missing or does not compute in `dtype`.
        """
        torch.set_num_threads(self.threads)
        return load(self.model, self.device, self.dtype, max_pixels=self.max_pixels)

    def finder(self, detector: Detector) -> Finder:
        selection = detector.selection(self.threshold, self.classes, self.class_thresholds)
        augmented = with_views(detector, self.tta)
        most = detector.most_detections(self.max_detections)
        return finder_for(augmented, selection, most, self.batch_size, self.tiling)

    def identity(self, detector: Detector) -> dict[str, Any]:
        """Return everything that must be equal if rows are to be equal, as JSON values.

        The entries are `model` (a hash of the model that `detector` has loaded), `options` (with the type of
        the device, such as `cuda`, instead of its name), and `versions` (of the libraries here).
        """
        options = asdict(replace(self, device=torch.device(self.device).type))
        del options["model"]
        identity = {
            "model": model_hash(self.model, detector),
            "options": options,
            "versions": versions_of(_LIBRARIES),
        }
        plain: dict[str, Any] = json.loads(json.dumps(identity))
        return plain


def model_hash(model: str, detector: Detector) -> str:
    """Return the SHA-256 of a model's weights and description, or of an exported model's files, in hex.

    `model` is the path or name from which `detector` was loaded.
    """
    digest = hashlib.sha256()
    if is_exported(model):
        path = Path(model).expanduser()
        for file in (path, path.with_suffix(".bin")):
            if file.is_file():
                digest.update(file.read_bytes())
        return digest.hexdigest()
    description = detector.checkpoint.description.to_dict("identity")
    del description["versions"]
    digest.update(json.dumps(description, sort_keys=True).encode())
    for name, tensor in sorted(detector.model.state_dict().items()):
        values = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(memoryview(values.view(torch.uint8).numpy()))
    return digest.hexdigest()


def check_identity(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise a `UserError` if the model, options or versions of a worker differ from those of the run.

    `found` is the result of `Job.identity` in the worker, and `wanted` is that of the run.
    """
    for name in wanted:
        if found[name] != wanted[name]:
            raise UserError(
                f"a worker has another {name} than the run ({found[name]} instead of {wanted[name]}): give "
                "all machines the same model and the same packages."
            )

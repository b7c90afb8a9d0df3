"""An opened exported file, and the code that all formats share.

Letters: B batch; H, W height and width of the padded pictures, h, w of one picture before padding; Q queries.
"""

from __future__ import annotations

import os
import sys
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...checkpoint import Description
from ...classification import ClassificationScheme, build_classification
from ...errors import UserError
from ...extras import import_extra
from ...structures import ImageBatch, Predictions
from ...system.machine import num_cores
from ...words import one_line
from ..backend import Backend
from ..postprocess import Candidates
from .metadata import Metadata

if TYPE_CHECKING:
    from torch import Tensor

MAX_BYTES = 2**31  # protobuf's limit, and ten times the size of a ResNet-101 model


class ExportedBackend(Backend):
    """A backend that runs the graph of a file, which maps pixels and a mask to logits and boxes (see `run`).

    `candidates` is for `predict`, and needs no PyTorch for the classification schemes of this package;
    `__call__` is for comparisons with PyTorch models.
    """

    def __init__(self, path: Path, description: Description):
        self.path = path
        self._num_logits = build_classification(description.config).num_logits

    def __call__(self, batch: ImageBatch) -> Predictions:
        import torch

        logits, boxes = self.run(batch.pixels.float().cpu().numpy(), batch.mask.cpu().numpy())
        return Predictions(torch.from_numpy(logits), torch.from_numpy(boxes))

    def candidates(
        self, pixels: Sequence[Tensor | np.ndarray], classification: ClassificationScheme, k: int
    ) -> Candidates:
        return Candidates.of_arrays(*self.run(*_padded([*map(np.asarray, pixels)])), classification, k)

    def run(self, pixels: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return logits (B, Q, num_logits) and boxes (B, Q, 4) cxcywh of the Q queries for B pictures.

        `pixels` are (B, 3, H, W) float32, normalised and padded; `mask` is (B, H, W) bool, True = padding.
        Boxes are fractions of the unpadded pictures.

        Raises:
            UserError: if the graph fails, or its result contradicts the metadata.
        """
        B, _, H, W = pixels.shape
        with _blaming(self.path, f"cannot compute {B} pictures of {W} x {H} pixels"):
            logits, boxes = self._run(np.ascontiguousarray(pixels), np.ascontiguousarray(mask))
        Q = boxes.shape[1] if boxes.ndim == 3 else 0
        if tuple(boxes.shape) != (B, Q, 4) or tuple(logits.shape) != (B, Q, self._num_logits):
            raise UserError(
                f"{self.path} returns logits {tuple(logits.shape)} and boxes {tuple(boxes.shape)}, but its "
                f"metadata specify {self._num_logits} logits: the file was changed, export it again."
            )
        return logits, boxes

    @abstractmethod
    def _run(self, pixels: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...


def _padded(pictures: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Pad pictures (3, h, w) like `ImageBatch.from_images`, and return the pixels and the mask as arrays."""
    H, W = (max(picture.shape[axis] for picture in pictures) for axis in (1, 2))
    pixels = np.zeros((len(pictures), 3, H, W), np.float32)
    mask = np.ones((len(pictures), H, W), bool)
    for index, picture in enumerate(pictures):
        _, h, w = picture.shape
        pixels[index, :, :h, :w] = picture
        mask[index, :h, :w] = False
    return pixels, mask


@dataclass(frozen=True)
class ExportedModel:
    """An opened exported file, with its metadata and the backend that runs its graph."""

    path: Path
    metadata: Metadata
    backend: ExportedBackend

    @property
    def description(self) -> Description:
        return self.metadata.description


def engine(name: str) -> Any:
    """Import a library of the extra [export], such as "onnxruntime", with its telemetry switched off.

    The type is Any, because none of these libraries has type hints.

    Raises:
        UserError: if the library is not installed.
    """
    _switch_telemetry_off()
    return import_extra(name, "export", "an exported model")


def _switch_telemetry_off() -> None:
    """Switch off the telemetry of ONNX Runtime and OpenVINO, which must be done before they are imported.

    These libraries report their use to Microsoft and Google Analytics and store an identifier in the home
    folder.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    # OpenVINO has no such variable. It sends nothing without the package openvino_telemetry, which has no
    # other purpose.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None forbids the import


def check_size(path: Path) -> None:
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise UserError(
            f"{path} has {size:,} bytes, more than {MAX_BYTES:,}: it is not a model of this package."
        )


@contextmanager
def _blaming(path: Path, what: str) -> Iterator[None]:
    """Turn every error of an engine in the `with` block into a `UserError` with the message "PATH WHAT (…)".

    All exceptions are caught, because those of the engines have no common base class; therefore the block
    should contain only calls into an engine. A `UserError` is raised again unchanged.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = one_line(error)[:300] or type(error).__name__
        raise UserError(f"{path} {what} ({reason}): export the model again.") from error


def reading(path: Path) -> Any:
    """Return a context manager that turns every error into a `UserError` that names the file `path`."""
    return _blaming(path, "cannot be read, it is damaged or was not written by `deformable-detr export`")


def threads() -> int:
    """Return the number of threads for an engine.

    This is PyTorch's number of threads if PyTorch is imported, otherwise OMP_NUM_THREADS or, if that is not a
    positive integer, the number of cores that the process may use.
    """
    torch = sys.modules.get("torch")
    if torch is not None:
        count: int = torch.get_num_threads()
        return count
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return int(limit) if limit.isdecimal() and int(limit) else num_cores()

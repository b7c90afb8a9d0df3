"""Find the selected detections in a picture, in two steps; another thread can do the first in advance."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..inference.detector import Detector
from ..inference.selection import Selection
from ..structures import Detections

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Prepared:
    """A picture that is ready for the model.

    Attributes:
        picture: (H, W, 3) uint8 RGB.
        pixels: the model's input for the whole picture; None if the model will see it in parts.
    """

    picture: np.ndarray
    pixels: Tensor | np.ndarray | None

    @property
    def size(self) -> tuple[int, int]:
        return self.picture.shape[0], self.picture.shape[1]


class Finder(ABC):
    """A detector, the selection of its detections, and the way in which it sees a picture."""

    def __init__(self, detector: Detector, selection: Selection, max_detections: int, batch_size: int):
        self.detector = detector
        self.selection = selection
        self.max_detections = max_detections
        self.batch_size = batch_size

    @abstractmethod
    def shape(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the shape of a picture of `size` (H, W); pictures of equal shape may share a batch."""

    @abstractmethod
    def prepare(self, picture: Image.Image) -> Prepared:
        """Do the part of the work that does not require the model."""

    @abstractmethod
    def find(self, prepared: Sequence[Prepared]) -> list[Detections]:
        """Return the selected detections in pictures of equal shape, each with its picture."""


class WholePictures(Finder):
    def shape(self, size: tuple[int, int]) -> tuple[int, int]:
        return self.detector.resized_size(size)

    def prepare(self, picture: Image.Image) -> Prepared:
        return Prepared(np.asarray(picture), self.detector.preprocess(picture))

    def find(self, prepared: Sequence[Prepared]) -> list[Detections]:
        pixels = [item.pixels for item in prepared if item.pixels is not None]
        results = self.detector.detect(
            pixels, [item.size for item in prepared], max_detections=self.max_detections
        )
        return [
            self.selection(detections).with_image(item.picture)
            for item, detections in zip(prepared, results, strict=True)
        ]


def with_views(detector: Detector, tta: bool | Sequence[float]) -> Detector:
    """Return the detector with the test-time augmentation of the option `tta`."""
    if not tta:
        return detector
    from ..inference.tta import augmented_as_requested

    return augmented_as_requested(detector, tta)

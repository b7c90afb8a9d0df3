"""From a picture to what is wanted of it, in two steps: another thread can do the first ahead of time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

from ..inference.detector import Detector
from ..inference.selection import Selection
from ..structures import Detections


@dataclass(frozen=True)
class Prepared:
    """`picture`: (H, W, 3) uint8 RGB. `pixels`: as the model sees the whole of it, None where it will see
    parts."""

    picture: np.ndarray
    pixels: Tensor | None

    @property
    def size(self) -> tuple[int, int]:
        return self.picture.shape[0], self.picture.shape[1]


class Finder(ABC):
    """A detector, what is wanted of it, and how a picture is shown to it."""

    def __init__(self, detector: Detector, selection: Selection, max_detections: int, batch_size: int):
        self.detector = detector
        self.selection = selection
        self.max_detections = max_detections
        self.batch_size = batch_size

    @abstractmethod
    def shape(self, size: tuple[int, int]) -> tuple[int, int]:
        """Pictures (H, W) of equal shape may share a batch."""

    @abstractmethod
    def prepare(self, picture: Image.Image) -> Prepared:
        """What can be done before the model's turn."""

    @abstractmethod
    def find(self, prepared: Sequence[Prepared]) -> list[Detections]:
        """The wanted detections in pictures of equal shape, each carrying its picture."""


class WholePictures(Finder):
    def shape(self, size: tuple[int, int]) -> tuple[int, int]:
        return self.detector.resized_size(size)

    def prepare(self, picture: Image.Image) -> Prepared:
        return Prepared(np.asarray(picture), self.detector.preprocess(picture))

    def find(self, prepared: Sequence[Prepared]) -> list[Detections]:
        pixels = [one.pixels for one in prepared if one.pixels is not None]
        found = self.detector.detect(
            pixels, [one.size for one in prepared], max_detections=self.max_detections
        )
        return [
            self.selection(detections).with_image(one.picture)
            for one, detections in zip(prepared, found, strict=True)
        ]

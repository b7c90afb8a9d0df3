"""Detection in pictures, in two steps: `Finder.prepare`, which another thread can run, and `Finder.find`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..detections import Detections
from ..inference.detector import Detector
from ..inference.selection import Selection

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Prepared:
    """A picture that is ready for `Finder.find`.

    Attributes:
        picture: the whole picture in its original size, (height, width, 3) uint8 RGB.
        pixels: the picture as the detector's `preprocess` returns it; None if the picture is processed in
            tiles, which are preprocessed later.
    """

    picture: np.ndarray
    pixels: Tensor | np.ndarray | None

    @property
    def size(self) -> tuple[int, int]:
        return self.picture.shape[0], self.picture.shape[1]


class Finder(ABC):
    """A way to find objects in pictures, whole or in tiles.

    Args:
        detector: the detector that finds the objects.
        selection: the minimum score of each class.
        max_detections: the maximum number of detections per picture or, with tiles, per tile.
        batch_size: the maximum number of pictures or tiles that are computed together.
    """

    def __init__(self, detector: Detector, selection: Selection, max_detections: int, batch_size: int):
        self.detector = detector
        self.selection = selection
        self.max_detections = max_detections
        self.batch_size = batch_size

    @abstractmethod
    def shape(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the shape by which pictures of `size` are sorted into batches, both as (height, width).

        Only pictures of equal shape share a batch.
        """

    @abstractmethod
    def prepare(self, picture: Image.Image) -> Prepared:
        """Convert a picture to the form that `find` takes, without running the model."""

    @abstractmethod
    def find(self, prepared: Sequence[Prepared]) -> list[Detections]:
        """Return the selected detections in each of the pictures, in the order of `prepared`.

        The pictures must have the same `shape`. Each result contains its picture.

        Raises:
            UserError: if the model's output is not finite, or an exported file cannot compute the pictures.
        """


class WholePictures(Finder):
    """Detection in whole pictures, which are resized as the model requires."""

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
    """Return `detector` with the test-time augmentation that the option `tta` requests, if any.

    Raises:
        UserError: if a scale is repeated or outside [0.1, 10].
    """
    if not tta:
        return detector
    from ..inference.tta import augmented, tta_scales

    return augmented(detector, tta_scales(tta))

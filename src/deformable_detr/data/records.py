"""The records of a data set that has been read, whatever its layout: classes, images, boxes, problems.

Every reader in `data/formats/` returns a `Split`; all other modules only use that.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..structures import ClassTable
from .remote_folder import RemoteFile


@dataclass(frozen=True)
class Problem:
    """One problem in a data set.

    `kind`: a short stable slug such as `zero-size-box`, by which problems are counted.
    `where`: file and line, or file and annotation id. `message`: the problem and how it was handled.
    If the problem concerns a box with known coordinates: `image` is its picture, and `box_xyxy` the box as
    the file states it.
    """

    kind: str
    where: str
    message: str
    image: Path | None = None
    box_xyxy: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class ImageRecord:
    """One image and its objects. Labels are class indices (`Split.classes`), never data set ids.

    `image_id`: the data set's integer id, or a number that the reader assigns (VOC, YOLO).
    `size`: (H, W) as the annotation states it; from the file's header if the layout states none (YOLO).
    `boxes_xyxy`: (N, 4) float64 pixels of the annotated image, clipped to it.
    `labels`: (N,) int64. `crowd`: (N,) bool, regions that are neither learned nor counted (COCO's iscrowd).
    `difficult`: (N,) bool (Pascal VOC): learned, but not counted in Pascal's metric.
    `area`: (N,) float64, in pixels: COCO's `area` (that of the mask if there is one); otherwise w·h.
    `annotation_ids`: (N,) int64, those of the data set if it has them.
    `remote`: the picture behind a URL; `path` is then only its name.
    """

    path: Path
    file_name: str
    image_id: int
    size: tuple[int, int]
    boxes_xyxy: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray
    area: np.ndarray
    annotation_ids: np.ndarray
    remote: RemoteFile | None = None

    @property
    def file(self) -> Path | RemoteFile:
        """The picture, for `open_image`."""
        return self.path if self.remote is None else self.remote

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Split:
    """One part of a data set: train, val, test, …

    `format`: coco, voc or yolo. `source`: the file or folder of the annotations.
    `images` are sorted by `image_id`; images without objects are kept. `num_listed_images`,
    `num_listed_objects`: the numbers in the files, including unusable entries; None if not counted.
    """

    name: str
    format: str
    source: Path
    classes: ClassTable
    images: tuple[ImageRecord, ...]
    problems: tuple[Problem, ...] = field(default_factory=tuple)
    num_listed_images: int | None = None
    num_listed_objects: int | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_objects(self) -> int:
        """The number of objects that can be learned, which excludes crowds."""
        return sum(int(np.count_nonzero(~image.crowd)) for image in self.images)

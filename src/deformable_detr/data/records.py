"""The records of a data set that has been read, whatever its layout: classes, images, boxes, problems.

Every reader in `data/formats/` returns a `Split`, so all other modules are independent of the layout.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..detections import ClassTable
from .remote_folder import RemoteFile


@dataclass(frozen=True)
class Problem:
    """One problem in a data set.

    `kind`: a short stable slug such as `zero-size-box`, by which problems are counted.
    `where`: a file, with a line or an annotation id if there is one. `message`: the problem and how it was
    handled.
    If the problem concerns a box with known coordinates, `image` is the path of its picture, and `box_xyxy`
    is the box in pixels before clipping; otherwise both are None.
    """

    kind: str
    where: str
    message: str
    image: Path | None = None
    box_xyxy: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class ImageRecord:
    """One image and its N objects.

    `path`: the image file; only its name if the file is behind a URL.
    `file_name`: the name by which results and messages call the image.
    `image_id`: the data set's integer id, or a number that the reader assigns (VOC, YOLO).
    `size`: (height, width) in pixels, as the annotation states it; from the picture's header if it states
    none, as in YOLO.
    `boxes_xyxy`: (N, 4) float64 pixels of the annotated image, clipped to it.
    `labels`: (N,) int64 indices into `Split.classes`, never the data set's own ids.
    `crowd`: (N,) bool, True for regions with several objects (COCO's iscrowd). Training does not use them,
    and metrics count the detections in them neither as right nor as wrong.
    `difficult`: (N,) bool, True for objects that training uses, but Pascal VOC's metric does not.
    `area`: (N,) float64, in pixels: COCO's `area` (that of the mask if there is one); otherwise the area of
    the box.
    `annotation_ids`: (N,) int64, the data set's ids; the reader assigns ids if there are none.
    `remote`: the file behind a URL, or None if `path` is a file on the disk.
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
        """The source to pass to `open_image`: `remote` if there is one, otherwise `path`."""
        return self.path if self.remote is None else self.remote

    @property
    def num_objects(self) -> int:
        """The number of objects to train on, which excludes crowd regions."""
        return int(np.count_nonzero(~self.crowd))

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Split:
    """One part of a data set, such as train, val or test.

    `format`: coco, voc or yolo. `source`: the file or folder of the annotations, or YOLO's description file.
    `images` are sorted by `image_id`; images without objects are kept. `problems`: the problems that the
    reader noticed, including notes. `num_listed_images`, `num_listed_objects`: the numbers of images and of
    objects that the data set's files list, including unusable entries; None if they were not counted.
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
        """The number of objects to train on, which excludes crowd regions."""
        return sum(image.num_objects for image in self.images)

    @property
    def max_objects(self) -> int:
        """The maximum number of objects in one image, excluding crowd regions; 0 if there are no images."""
        return max((image.num_objects for image in self.images), default=0)

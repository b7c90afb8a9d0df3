"""The results of detection: the classes of a model, and the detections in a picture.

This module needs no PyTorch, so that exported models can be used without it. Letters: N, the number of
detections in one picture; H and W, its height and width.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import UserError
from .extras import import_extra
from .words import count, listed, printable

if TYPE_CHECKING:
    # Imported at run time only by the methods that need them.
    import supervision
    from PIL.Image import Image

NOTEBOOK_SIDE, NOTEBOOK_ROWS = 900, 20  # in a notebook, the maximum picture side (pixels) and table rows
MAX_NAMES = 8  # the maximum number of classes that a one-line description lists


@dataclass(frozen=True)
class ClassTable:
    """The class of each index: its name `names[i]` and the data set's own id `category_ids[i]`.

    This is the only class that maps a data set's ids (sparse, 0-based or 1-based) to the model's indices
    0..num_classes-1. `names[i] is None` marks a logit that no class of the data set uses (COCO's unused ids
    in the published checkpoints with 91 logits). Such a class is never predicted.

    Raises:
        ValueError: if the numbers of names and ids differ, or an id occurs twice.
        TypeError: if a name is neither a string nor None, or an id is not an int that fits in 64 bits.
    """

    names: tuple[str | None, ...]
    category_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.category_ids):
            raise ValueError(f"{len(self.names)} class names but {len(self.category_ids)} category ids")
        if len(set(self.category_ids)) != len(self.category_ids):
            raise ValueError("category ids must differ from each other")
        if not all(name is None or isinstance(name, str) for name in self.names):
            raise TypeError("a class name is not a string")
        if not all(type(number) is int and -(2**63) <= number < 2**63 for number in self.category_ids):
            raise TypeError("a category id is not an integer of 64 bits")

    @classmethod
    def from_names(cls, names: Sequence[str]) -> ClassTable:
        """Create a table with the category ids 0, 1, 2, … for a data set that has no ids."""
        return cls(tuple(names), tuple(range(len(names))))

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return self.names[index] or f"unused {self.category_ids[index]}"


def loose_name(name: str) -> str:
    """Normalise a class name for comparisons that ignore case and spaces at the start and the end."""
    return name.strip().casefold()


@dataclass(frozen=True, repr=False)
class Detections:
    """The N detections of one image, best score first. N may be 0.

    `boxes_xyxy`: (N, 4) float32, in pixels of the original image. `scores`: (N,) float32.
    `labels`: (N,) int64 class indices; `category_ids`: (N,) int64, the data set's own ids;
    `names`: the N class names. `image_size`: (H, W) of the original image.
    `image`: the picture itself, (H, W, 3) uint8 RGB, which `draw()` uses; None if it is not available.
    `track_ids`: (N,) int64 in a tracked video, otherwise None. An object has the same number in every frame,
    and -1 until it is tracked.
    """

    boxes_xyxy: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    category_ids: np.ndarray
    names: tuple[str, ...]
    image_size: tuple[int, int]
    image: np.ndarray | None = None
    track_ids: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        return f"Detections({self.in_words()})"

    def in_words(self) -> str:
        """Return the number of objects per class and the picture's width x height in pixels.

        Examples are '3 objects: 2 car, 1 bus; 64x48' and 'no objects; 64x48'. At most 8 classes are listed,
        the most frequent first.
        """
        numbers = Counter(self.names).most_common()
        listed_numbers = listed([f"{number} {name}" for name, number in numbers], MAX_NAMES)
        objects = f"{count(len(self), 'object')}: {listed_numbers}" if numbers else "no objects"
        return printable(f"{objects}; {self.image_size[1]}x{self.image_size[0]}")

    def _repr_html_(self) -> str:
        """Return HTML for a notebook: the picture with its boxes, if available, and a table.

        The table has at most 20 rows.
        """
        from .pages import data_url, render

        picture = None if self.image is None else data_url(self.draw(), NOTEBOOK_SIDE)
        rows = list(zip(self.names, self.scores.tolist(), self.boxes_xyxy.tolist(), strict=True))
        return render(
            "detections.html", title=self.in_words(), picture=picture, rows=rows, most=NOTEBOOK_ROWS
        )

    def above(self, threshold: float) -> Detections:
        """Return only the detections with a score of at least `threshold`."""
        return self.take(np.flatnonzero(self.scores >= threshold))

    def take(self, indices: np.ndarray) -> Detections:
        """Return the detections at these indices, in the order of the indices."""
        return replace(
            self,
            boxes_xyxy=self.boxes_xyxy[indices],
            scores=self.scores[indices],
            labels=self.labels[indices],
            category_ids=self.category_ids[indices],
            names=tuple(self.names[i] for i in indices),
            track_ids=None if self.track_ids is None else self.track_ids[indices],
        )

    def clipped(self) -> Detections:
        """Return the same detections with their boxes clipped to the picture."""
        height, width = self.image_size
        high = np.array([width, height, width, height], dtype=self.boxes_xyxy.dtype)
        return replace(self, boxes_xyxy=self.boxes_xyxy.clip(0, high))

    @classmethod
    def concatenate(cls, parts: Sequence[Detections]) -> Detections:
        """Join several groups of detections of one picture, in the order of `parts`, which must not be empty.

        The result is not sorted by score. The size and the image are those of the first group. If only some
        groups have track ids, the detections of the others get -1.
        """
        tracked = any(part.track_ids is not None for part in parts)
        track_ids = [
            np.full(len(part), -1, dtype=np.int64) if part.track_ids is None else part.track_ids
            for part in parts
        ]
        return replace(
            parts[0],
            boxes_xyxy=np.concatenate([part.boxes_xyxy for part in parts]),
            scores=np.concatenate([part.scores for part in parts]),
            labels=np.concatenate([part.labels for part in parts]),
            category_ids=np.concatenate([part.category_ids for part in parts]),
            names=tuple(name for part in parts for name in part.names),
            track_ids=np.concatenate(track_ids) if tracked else None,
        )

    def with_image(self, image: np.ndarray) -> Detections:
        """Return the same detections with a picture, (H, W, 3) uint8 RGB, for `draw()`."""
        return replace(self, image=image)

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """Return COCO result rows: image_id, category_id, bbox (x, y, width, height in pixels) and score."""
        rows = []
        for box, score, category_id in zip(self.boxes_xyxy, self.scores, self.category_ids, strict=True):
            x0, y0, x1, y1 = (float(value) for value in box)
            rows.append(
                {
                    "image_id": image_id,
                    "category_id": int(category_id),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "score": float(score),
                }
            )
        return rows

    def to_supervision(self) -> supervision.Detections:
        """Convert to supervision's type, with names in `data["class_name"]` and track ids in `tracker_id`.

        Raises:
            UserError: if supervision (extra [supervision]) is not installed.
        """
        result: supervision.Detections = import_supervision("to_supervision").Detections(
            xyxy=self.boxes_xyxy.astype(np.float32).reshape(-1, 4),
            confidence=self.scores.astype(np.float32),
            class_id=self.labels.astype(int),
            tracker_id=None if self.track_ids is None else self.track_ids.astype(int),
            data={"class_name": np.array(self.names, dtype=str)},
        )
        return result

    def draw(self, image: Any = None) -> Image:
        """Return a copy of a picture with the labelled boxes.

        The line width and the text size grow with the picture, and labels do not overlap if there is enough
        space. The colour shows the class or, in a tracked video, the object.

        Args:
            image: the picture in which the objects were found, as a path, a PIL image or an (H, W, 3) RGB
                uint8 array; by default `self.image`. As in `Detector.predict`, a file or a PIL image is
                turned upright first.

        Raises:
            ValueError: if `image` and `self.image` are both None.
            OSError: if the file at the path `image` is missing or is not a picture.
        """
        from PIL import Image as PILImage
        from PIL import ImageOps

        from .drawing import draw_boxes

        if image is None:
            if self.image is None:
                raise ValueError("these detections have no picture: pass one, draw(image)")
            image = self.image
        if isinstance(image, np.ndarray):
            picture = PILImage.fromarray(image)
        else:
            opened = image if isinstance(image, PILImage.Image) else PILImage.open(image)
            picture = ImageOps.exif_transpose(opened).convert("RGB")
        tracks = [None] * len(self) if self.track_ids is None else self.track_ids.tolist()
        labels, colours = [], []
        for name, score, label, track in zip(self.names, self.scores, self.labels, tracks, strict=True):
            tracked = track is not None and track >= 0
            labels.append(f"{name} #{track} {score:.2f}" if tracked else f"{name} {score:.2f}")
            colours.append(track if tracked else int(label))
        return draw_boxes(picture, self.boxes_xyxy, labels, colours)


def require_finite(scores: np.ndarray, boxes: np.ndarray, output: str = "the model's output") -> None:
    """Raise a `UserError` if a score or a coordinate is not finite; `output` is the message's subject.

    Comparisons with NaN are false, so that such a detection would vanish without a message.
    """
    if not (np.isfinite(scores).all() and np.isfinite(boxes).all()):
        raise UserError(
            f"{output} is not finite, so the model's weights are broken, or 16 bits are too few for it: use "
            "a checkpoint from before the training diverged, or compute in fp32."
        )


def import_supervision(use: str) -> ModuleType:
    """Import supervision without its advice to install OpenCV, which is not needed here.

    Raises:
        UserError: if supervision is not installed; `use` is the subject of the message.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="OpenCV", category=UserWarning)
        return import_extra("supervision", "supervision", use)

"""The matching of detections with objects, at one IoU threshold at a time.

COCO's rules are those of faster-coco-eval and pycocotools (the tests compare with them). Within an image and
a class, each detection in turn, best first, takes the free object that it overlaps most; a crowd region
excuses any number of detections and need not be found. Pascal VOC's rule differs: a detection claims the
object that it overlaps most even if that object is taken, and is then wrong.

Letters: D detections and N objects of a split or of one image, C classes of the data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.records import Split

LOOSE, TIGHT = 0.5, 0.75  # the IoU thresholds of the report
ROUNDING = 1e-10  # COCO's, so that an IoU can reach a threshold of 1 despite rounding


@dataclass(frozen=True)
class Objects:
    """The N objects of a split.

    Attributes:
        images: (N,), the index of each object's image in `split.images`.
        numbers: (N,), the index of each object among the objects of its image.
        boxes_xyxy: (N, 4), in pixels of the picture.
        labels: (N,), class indices of the data.
        crowd: (N,) bool, True for crowd regions.
        areas: (N,), the area of each object in pixels; that of its mask if it has one.
    """

    images: np.ndarray
    numbers: np.ndarray
    boxes_xyxy: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def from_split(cls, split: Split) -> Objects:
        counts = [len(image) for image in split.images]
        return cls(
            images=np.repeat(np.arange(len(counts)), counts),
            numbers=np.concatenate([np.arange(count) for count in counts] or [np.zeros(0, int)]),
            boxes_xyxy=np.concatenate([image.boxes_xyxy.reshape(-1, 4) for image in split.images]),
            labels=np.concatenate([image.labels for image in split.images]).astype(np.int64),
            crowd=np.concatenate([image.crowd for image in split.images]).astype(bool),
            areas=np.concatenate([image.area for image in split.images]),
        )


@dataclass(frozen=True)
class ScoredBoxes:
    """The D detections in a split, best score first; if scores are equal, the earlier image is first.

    Attributes:
        images: (D,), the index of each detection's image in `split.images`.
        boxes_xyxy: (D, 4), in pixels of the picture.
        labels: (D,), class indices of the data.
        scores: (D,), in [0, 1].
    """

    images: np.ndarray
    boxes_xyxy: np.ndarray
    labels: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def from_rows(cls, rows: Sequence[Mapping[str, Any]], split: Split) -> ScoredBoxes:
        """Convert COCO result rows with the split's own ids (from `evaluation.collect_detections`).

        Raises:
            KeyError: if a row names an image or category that the split lacks.
        """
        image_of = {image.image_id: index for index, image in enumerate(split.images)}
        label_of = {category_id: label for label, category_id in enumerate(split.classes.category_ids)}
        boxes = np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4)
        images = np.array([image_of[row["image_id"]] for row in rows], dtype=np.int64)
        scores = np.array([row["score"] for row in rows], dtype=np.float64)
        order = np.lexsort((images, -scores))
        return cls(
            images=images[order],
            boxes_xyxy=np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)[order],
            labels=np.array([label_of[row["category_id"]] for row in rows], dtype=np.int64)[order],
            scores=scores[order],
        )


@dataclass(frozen=True)
class Matches:
    """The match of each of D detections.

    Attributes:
        objects: (D,), the index of the object that each detection found; -1 if it found none.
        excused: (D,) bool, True for detections that are neither right nor wrong, because they found no object
            but overlap a crowd region.
    """

    objects: np.ndarray
    excused: np.ndarray

    @property
    def right(self) -> np.ndarray:
        return self.objects >= 0

    @property
    def wrong(self) -> np.ndarray:
        result: np.ndarray = (self.objects < 0) & ~self.excused
        return result


def match(detections: ScoredBoxes, objects: Objects, iou_threshold: float) -> Matches:
    """Match all detections of a split by COCO's rules, class by class; `iou_threshold` is the minimum IoU."""
    matched = np.full(len(detections), -1)
    excused = np.zeros(len(detections), dtype=bool)
    for _, rows, columns in in_same_image(detections, objects, same_class=True):
        crowd = objects.crowd[columns]
        overlap = overlaps(detections.boxes_xyxy[rows], objects.boxes_xyxy[columns], crowd)
        taken = assign(np.where(crowd, -1.0, overlap), iou_threshold)
        matched[rows[taken >= 0]] = columns[taken[taken >= 0]]
        excused[rows] = (taken < 0) & (crowd & (overlap >= _reachable(iou_threshold))).any(axis=1)
    return Matches(matched, excused)


def assign(overlap: np.ndarray, iou_threshold: float) -> np.ndarray:
    """Assign objects to detections by COCO's rule, each object once.

    A detection takes the free object that it overlaps most, if the overlap is at least `iou_threshold`. Among
    equal overlaps, COCO takes the last.

    Args:
        overlap: (D, N), for D detections in descending order of score and N objects, with -1 for pairs that
            must not match.

    Returns:
        The index of the object that each detection takes, (D,); -1 if it takes none.
    """
    taken = np.full(len(overlap), -1)
    free = np.ones(overlap.shape[1], dtype=bool)
    for row, ious in enumerate(overlap):
        rest = np.where(free, ious, -1.0)[::-1]
        if rest.max(initial=-1.0) >= _reachable(iou_threshold):
            taken[row] = len(rest) - 1 - rest.argmax()
            free[taken[row]] = False
    return taken


def claim(overlap: np.ndarray, iou_threshold: float) -> np.ndarray:
    """Return the index of the object that each detection claims by Pascal's rule, (D,); -1 means none.

    A detection claims the object that it overlaps most if the overlap is at least `iou_threshold`, even if
    the object is taken. Among equal overlaps, Pascal takes the first.

    Args:
        overlap: (D, N), for D detections and N objects, with N at least 1.
    """
    return np.where(overlap.max(axis=1) >= iou_threshold, overlap.argmax(axis=1), -1)


def _reachable(iou_threshold: float) -> float:
    return min(iou_threshold, 1 - ROUNDING)


def in_same_image(
    detections: ScoredBoxes, objects: Objects, *, same_class: bool
) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Group detections and objects by image and, if `same_class` is True, by class.

    Returns:
        A list of tuples (index of the image, indices of its detections in descending order of score, indices
        of its objects), one for each image, or each pair of image and class, that has both.
    """

    def groups(images: np.ndarray, labels: np.ndarray) -> dict[tuple[int, int], np.ndarray]:
        keys = labels if same_class else np.zeros_like(labels)
        order = np.lexsort((keys, images))
        if not len(order):
            return {}
        pairs = np.stack([images[order], keys[order]], axis=1)
        starts = np.flatnonzero((np.diff(pairs, axis=0) != 0).any(1)) + 1
        return {(int(images[part[0]]), int(keys[part[0]])): part for part in np.split(order, starts)}

    predicted = groups(detections.images, detections.labels)
    targets = groups(objects.images, objects.labels)
    return [(key[0], rows, targets[key]) for key, rows in predicted.items() if key in targets]


def overlaps(
    detections_xyxy: np.ndarray,
    objects_xyxy: np.ndarray,
    crowd: np.ndarray | None = None,
    extra: float = 0.0,
) -> np.ndarray:
    """Compute the IoU of detections and objects, (D, N).

    For a crowd region, the result is the share of the detection's area that is inside the region. The result
    is 0 for a box without area, unless `extra` gives it one.

    Args:
        detections_xyxy: the boxes of D detections, (D, 4).
        objects_xyxy: the boxes of N objects, (N, 4).
        crowd: (N,) bool; None means no crowds.
        extra: a number to add to widths and heights; 1 in Pascal's own code, which counts the last pixel.
    """
    a, b = detections_xyxy[:, None], objects_xyxy[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    intersection = np.maximum(sides + extra, 0.0).prod(-1)
    area_a, area_b = ((box[..., 2:] - box[..., :2] + extra).prod(-1) for box in (a, b))
    union = area_a + area_b - intersection
    if crowd is not None:
        union = np.where(crowd[None], area_a, union)
    result: np.ndarray = np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)
    return result


# ---------------------------------------------------------------- confusion


def confusion(
    detections: ScoredBoxes, objects: Objects, matches: Matches, above: np.ndarray, num_classes: int
) -> np.ndarray:
    """Count confusions, (C + 1, C + 1), with the objects' classes as rows and the detections' as columns.

    Only the detections in the mask `above`, (D,) bool, count. Those that found an object of their own class
    (`matches`) keep it. Then each other detection, best first, takes the remaining object of any class that
    it overlaps most, if the overlap is at least `LOOSE`; such a pair is a confusion. The last column counts
    the objects that no detection took (missed), and the last row counts the detections that took no object
    (background). Crowds, and the detections that they excuse, are left out. C is `num_classes`.
    """
    table = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    taken = np.zeros(len(objects), dtype=bool)
    right = np.flatnonzero(above & matches.right)
    taken[matches.objects[right]] = True
    np.add.at(table, (detections.labels[right], detections.labels[right]), 1)
    confused = np.full(len(detections), -1)
    wrong = above & matches.wrong
    for _, rows, columns in in_same_image(detections, objects, same_class=False):
        rows, columns = rows[wrong[rows]], columns[~objects.crowd[columns] & ~taken[columns]]
        others = assign(overlaps(detections.boxes_xyxy[rows], objects.boxes_xyxy[columns]), LOOSE)
        confused[rows[others >= 0]] = columns[others[others >= 0]]
    mistaken = np.flatnonzero(confused >= 0)
    taken[confused[mistaken]] = True
    np.add.at(table, (objects.labels[confused[mistaken]], detections.labels[mistaken]), 1)
    np.add.at(table, (num_classes, detections.labels[wrong & (confused < 0)]), 1)
    np.add.at(table, (objects.labels[~taken & ~objects.crowd], num_classes), 1)
    return table

"""Which detection found which object: the matching behind every curve of the report.

COCO's rules, as faster-coco-eval and pycocotools apply them (the tests compare), for one IoU threshold at a
time. In an image and class, by falling score, a detection takes the free object that it overlaps most; a
crowd region excuses any number of detections and need not be found.

Letters: D detections, N objects of a split, C classes of the data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.records import Split

LOOSE, TIGHT = 0.5, 0.75  # the IoU thresholds of the report
ROUNDING = 1e-10  # COCO's: a threshold of 1 can be reached


@dataclass(frozen=True)
class Objects:
    """The N objects of a split. `images`: index into `split.images`; `numbers`: which of its objects;
    `labels`: class index of the data; `areas`: in pixels, of the mask where there is one."""

    images: np.ndarray
    numbers: np.ndarray
    boxes_xyxy: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def of(cls, split: Split) -> Objects:
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
class Found:
    """The D detections in a split, best score first (the earlier image first among equals).

    `images`: index into `split.images`; `labels`: class index of the data.
    """

    images: np.ndarray
    boxes_xyxy: np.ndarray
    labels: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], split: Split) -> Found:
        """From COCO results rows with the split's own ids, as `evaluation.collect_detections` gives them."""
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
    """`objects`: (D,) the object that each detection found, -1 for none. `excused`: (D,) bool, it lies on a
    crowd region and counts neither as right nor as wrong."""

    objects: np.ndarray
    excused: np.ndarray

    @property
    def right(self) -> np.ndarray:
        return self.objects >= 0

    @property
    def wrong(self) -> np.ndarray:
        return (self.objects < 0) & ~self.excused


def match(found: Found, objects: Objects, iou_threshold: float) -> Matches:
    """COCO's matching of all detections of a split, class by class."""
    matched = np.full(len(found), -1)
    excused = np.zeros(len(found), dtype=bool)
    least = min(iou_threshold, 1 - ROUNDING)
    for _, rows, columns in in_same_image(found, objects, same_class=True):
        crowd = objects.crowd[columns]
        overlap = overlaps(found.boxes_xyxy[rows], objects.boxes_xyxy[columns], crowd)
        free = ~crowd
        for row, each in zip(rows, overlap, strict=True):
            best = _last_best(np.where(free, each, -1.0))
            if best is not None and each[best] >= least:
                matched[row] = columns[best]
                free[best] = False
            else:
                excused[row] = bool((crowd & (each >= least)).any())
    return Matches(matched, excused)


def in_same_image(
    found: Found, objects: Objects, *, same_class: bool
) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """(image, its detections by falling score, its objects), for each image (and class) that has both."""

    def groups(images: np.ndarray, labels: np.ndarray) -> dict[tuple[int, int], np.ndarray]:
        keys = labels if same_class else np.zeros_like(labels)
        order = np.lexsort((keys, images))
        if not len(order):
            return {}
        pairs = np.stack([images[order], keys[order]], axis=1)
        starts = np.flatnonzero((np.diff(pairs, axis=0) != 0).any(1)) + 1
        return {(int(images[part[0]]), int(keys[part[0]])): part for part in np.split(order, starts)}

    detections, truths = groups(found.images, found.labels), groups(objects.images, objects.labels)
    return [(key[0], rows, truths[key]) for key, rows in detections.items() if key in truths]


def overlaps(found_xyxy: np.ndarray, objects_xyxy: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """(D, N) IoU; with a crowd region, the share of the detection that lies in it."""
    a, b = found_xyxy[:, None], objects_xyxy[None]
    sides = np.maximum(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0.0)
    intersection = sides.prod(-1)
    area_a, area_b = ((box[..., 2:] - box[..., :2]).prod(-1) for box in (a, b))
    union = np.where(crowd[None], area_a, area_a + area_b - intersection)
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def _last_best(values: np.ndarray) -> int | None:
    """Of equal overlaps COCO takes the last."""
    if not len(values) or values.max() < 0:
        return None
    return int(len(values) - 1 - values[::-1].argmax())


# ---------------------------------------------------------------- who was taken for whom


def confusion(
    found: Found, objects: Objects, matches: Matches, threshold: float, num_classes: int
) -> np.ndarray:
    """(C + 1, C + 1) counts: rows are the objects' classes, columns what the detections say.

    Detections of at least `threshold` that found an object of their own class (`matches`) stay with it. The
    others, by falling score, take the object that is left over which they overlap most, by LOOSE at least:
    a confusion. The last column holds objects that nothing took (missed), the last row detections that took
    nothing (background). Crowds, and what they excuse, are left out.
    """
    table = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    loud = found.scores >= threshold
    taken = np.zeros(len(objects), dtype=bool)
    right = np.flatnonzero(loud & matches.right)
    taken[matches.objects[right]] = True
    np.add.at(table, (found.labels[right], found.labels[right]), 1)
    confused = np.full(len(found), -1)
    wrong = loud & matches.wrong
    for _, rows, columns in in_same_image(found, objects, same_class=False):
        rows, columns = rows[wrong[rows]], columns[~objects.crowd[columns] & ~taken[columns]]
        if not len(rows) or not len(columns):
            continue
        overlap = overlaps(
            found.boxes_xyxy[rows], objects.boxes_xyxy[columns], np.zeros(len(columns), dtype=bool)
        )
        for row, each in zip(rows, overlap, strict=True):
            best = _last_best(np.where(taken[columns], -1.0, each))
            if best is not None and each[best] >= LOOSE:
                confused[row] = columns[best]
                taken[columns[best]] = True
    lost = np.flatnonzero(wrong & (confused >= 0))
    np.add.at(table, (objects.labels[confused[lost]], found.labels[lost]), 1)
    np.add.at(table, (num_classes, found.labels[wrong & (confused < 0)]), 1)
    np.add.at(table, (objects.labels[~taken & ~objects.crowd], num_classes), 1)
    return table

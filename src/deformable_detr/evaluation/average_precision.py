"""Average precision, COCO's and Pascal VOC's, of detections against a ground truth.

Both take the same two things. The ground truth is a COCO dictionary: `images`, `categories` and
`annotations`, the last with `bbox` [x, y, width, height] in pixels, `area`, `iscrowd` and, for Pascal's
metric, `difficult`; `evaluation.ground_truth_of` makes one of any data set that was read. The detections
are COCO results rows: `image_id`, `category_id`, `bbox`, `score` (`Detections.to_coco`).

COCO's numbers come from faster-coco-eval; pycocotools is the tests' oracle. Pascal's are computed here.
-1 means that there is nothing to find: no truth of that size, class or at all.

Letters: D detections, N true boxes, of one image and class.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import numpy as np

from ..errors import UserError
from .matching import claim, overlaps

Interpolation = Literal["every_point", "11_point"]
Row = Mapping[str, Any]

COCO_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
CLASS_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")


@dataclass(frozen=True)
class CocoNumbers:
    """`summary`: COCO's twelve numbers by `COCO_METRICS`. `classes`: by category id, CLASS_METRICS of each
    class that has something to find. In [0, 1], or -1 where there is no truth (of that size)."""

    summary: dict[str, float]
    classes: dict[int, dict[str, float]]


def coco_average_precision(ground_truth: Mapping[str, Any], detections: Sequence[Row]) -> dict[str, Any]:
    """COCO's twelve numbers for boxes, and AP and AP50 of each class that has something to find.

    Args, Raises: as `coco_numbers`.

    Returns:
        AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl in [0, 1], or -1 without truth, and
        `per_class`: {name: {"AP", "AP50"}}.
    """
    numbers = coco_numbers(ground_truth, detections)
    names = _class_names(ground_truth["categories"])
    per_class = {
        names[category_id]: {"AP": row["AP"], "AP50": row["AP50"]}
        for category_id, row in numbers.classes.items()
    }
    return {**numbers.summary, "per_class": per_class}


def coco_numbers(ground_truth: Mapping[str, Any], detections: Sequence[Row]) -> CocoNumbers:
    """COCO's numbers for boxes, of all classes together and of each.

    Args:
        ground_truth: a COCO dictionary (see the head of this file); it stays as it was. Annotations
            without `area` get width times height, without `iscrowd` 0.
        detections: COCO results rows; of each image and class the 100 with the highest scores count.

    Raises:
        UserError: a detection names an image or category that the ground truth lacks, or has no finite box
            and score.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    check_detections(ground_truth, detections)
    images = [{"id": image["id"]} for image in ground_truth["images"]]
    categories = [{"id": category["id"]} for category in ground_truth["categories"]]

    def indexed(annotations: Iterable[dict[str, Any]]) -> Any:
        # Ids start at 1: the matcher takes an id of 0 for "not matched".
        rows = [{**annotation, "id": number} for number, annotation in enumerate(annotations, start=1)]
        return COCO({"images": images, "categories": categories, "annotations": rows})

    truth = indexed(
        {
            "image_id": annotation["image_id"],
            "category_id": annotation["category_id"],
            "bbox": [float(value) for value in annotation["bbox"]],
            "area": annotation.get("area", annotation["bbox"][2] * annotation["bbox"][3]),
            "iscrowd": annotation.get("iscrowd", 0),
        }
        for annotation in ground_truth["annotations"]
    )
    found = indexed(
        {
            "image_id": row["image_id"],
            "category_id": row["category_id"],
            "bbox": [float(value) for value in row["bbox"]],
            "area": float(row["bbox"][2] * row["bbox"][3]),
            "iscrowd": 0,
            "score": float(row["score"]),
        }
        for row in detections
    )
    evaluation = COCOeval_faster(truth, found, iouType="bbox", print_function=lambda *_: None)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()

    summary = {name: float(value) for name, value in zip(COCO_METRICS, evaluation.stats, strict=True)}
    return CocoNumbers(summary, _of_classes(evaluation))


def _of_classes(evaluation: Any) -> dict[int, dict[str, float]]:
    """By category id, of the classes that have objects."""
    precision = evaluation.eval["precision"]  # (IoU thresholds, recalls, classes, area ranges, limits)
    recall = evaluation.eval["recall"]  # (IoU thresholds, classes, area ranges, limits)
    classes = {}
    for index, category_id in enumerate(evaluation.params.catIds):
        curves = precision[:, :, index, :, -1]  # (IoU thresholds, recalls, area ranges)
        if (curves[..., 0] > -1).any():
            by_area = [float(curves[..., area].mean()) for area in range(4)]
            values = (
                by_area[0], float(curves[0, :, 0].mean()), float(curves[5, :, 0].mean()), *by_area[1:],
                float(recall[:, index, 0, -1].mean()),
            )  # fmt: skip
            classes[category_id] = dict(zip(CLASS_METRICS, values, strict=True))
    return classes


def voc_average_precision(
    ground_truth: Mapping[str, Any],
    detections: Sequence[Row],
    *,
    iou_threshold: float = 0.5,
    interpolation: Interpolation = "every_point",
    plus_one: bool = False,
) -> dict[str, Any]:
    """Pascal VOC's average precision of each class, and their mean.

    By falling score (the earlier row first among equals), a detection claims the true box that it
    overlaps most, if by `iou_threshold` at least. The first to claim a box is right, the next is a
    duplicate and wrong, like one that claims none. Boxes that are difficult (or crowds) need not be found,
    and what claims them counts neither way.

    Args:
        ground_truth: a COCO dictionary whose annotations may have `difficult` (see the head of this file).
        detections: COCO results rows, without a limit per image.
        iou_threshold: in (0, 1].
        interpolation: `every_point` (VOC 2010 and later: the area under the curve) or `11_point`
            (VOC 2007: the mean precision at recall 0, 0.1, …, 1).
        plus_one: widths and heights count the last pixel too, x1 - x0 + 1, as in Pascal's own code.

    Returns:
        `mAP`, -1 where there is no truth, and `per_class`: {name: {"AP"}} of classes with something to find.

    Raises:
        UserError: as `coco_average_precision`; an option outside its range.
    """
    check_voc_options(iou_threshold, interpolation)
    check_detections(ground_truth, detections)
    truths_of, found_of = defaultdict(list), defaultdict(list)
    for annotation in ground_truth["annotations"]:
        truths_of[annotation["category_id"]].append(annotation)
    for row in detections:
        found_of[row["category_id"]].append(row)

    per_class = {}
    for category_id, name in _class_names(ground_truth["categories"]).items():
        truths = truths_of[category_id]
        num_wanted = sum(not _exempt(truth) for truth in truths)
        if num_wanted:
            hits = _voc_hits(truths, found_of[category_id], iou_threshold, plus_one)
            per_class[name] = {"AP": _area_under_curve(hits, num_wanted, interpolation)}
    mean = float(np.mean([numbers["AP"] for numbers in per_class.values()])) if per_class else -1.0
    return {"mAP": mean, "per_class": per_class}


def check_voc_options(iou_threshold: float, interpolation: str) -> None:
    """Raise UserError where `voc_average_precision` would, for callers with long work to do before."""
    if not 0 < iou_threshold <= 1:
        raise UserError(f"iou_threshold must be in (0, 1], not {iou_threshold}.")
    if interpolation not in ("every_point", "11_point"):
        raise UserError(f"interpolation must be every_point or 11_point, not {interpolation}.")


def check_detections(ground_truth: Mapping[str, Any], detections: Sequence[Row]) -> None:
    """Raise UserError at the first row that cannot be scored against `ground_truth`."""
    image_ids = {image["id"] for image in ground_truth["images"]}
    category_ids = {category["id"] for category in ground_truth["categories"]}
    for index, row in enumerate(detections):
        missing = [key for key in ("image_id", "category_id", "bbox", "score") if key not in row]
        if missing:
            raise UserError(
                f"detection {index} has no {missing[0]}: a results row needs image_id, category_id, bbox "
                "and score."
            )
        if row["image_id"] not in image_ids:
            raise UserError(
                f"detection {index} is for image_id {row['image_id']!r}, which is none of the "
                f"{len(image_ids)} images of the ground truth: score it against the split it was made on."
            )
        if row["category_id"] not in category_ids:
            raise UserError(
                f"detection {index} has category_id {row['category_id']!r}, which is none of the "
                f"{len(category_ids)} categories of the ground truth: write the data set's own ids."
            )
        box = row["bbox"]
        if len(box) != 4 or not all(_is_finite(value) for value in (*box, row["score"])):
            raise UserError(
                f"detection {index} (image_id {row['image_id']}) has bbox {box} and score {row['score']}: "
                "four finite numbers [x, y, width, height] and a finite score are needed."
            )
        if box[2] < 0 or box[3] < 0:
            raise UserError(
                f"detection {index} (image_id {row['image_id']}) has a negative width or height, bbox {box}: "
                "write [x, y, width, height], not two corners."
            )


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


def _class_names(categories: Sequence[Row]) -> dict[int, str]:
    """Names by id, in the data set's order; names that several ids share are told apart by the id."""
    count = Counter(category["name"] for category in categories)
    return {
        category["id"]: category["name"]
        if count[category["name"]] == 1
        else f"{category['name']} ({category['id']})"
        for category in categories
    }


def _exempt(truth: Row) -> bool:
    return bool(truth.get("difficult", 0) or truth.get("iscrowd", 0))


def _voc_hits(
    truths: Sequence[Row], found: Sequence[Row], iou_threshold: float, plus_one: bool
) -> np.ndarray:
    """Pascal's matching in one class: right or wrong, (number of detections that count,) by falling score."""
    order = np.argsort([-row["score"] for row in found], kind="stable")
    ranked = [found[index] for index in order]
    truths_in, ranked_in = defaultdict(list), defaultdict(list)
    for index, truth in enumerate(truths):
        truths_in[truth["image_id"]].append(index)
    for index, row in enumerate(ranked):
        ranked_in[row["image_id"]].append(index)

    claims = np.full(len(ranked), -1)
    extra = 1.0 if plus_one else 0.0
    for image_id in ranked_in.keys() & truths_in.keys():
        rows, columns = ranked_in[image_id], np.array([*truths_in[image_id], -1])  # the last: no claim
        boxes = (_boxes_xyxy([ranked[i] for i in rows]), _boxes_xyxy([truths[i] for i in columns[:-1]]))
        claims[rows] = columns[claim(overlaps(*boxes, extra=extra), iou_threshold)]

    hits = np.zeros(len(ranked), dtype=bool)
    claimed, first_claim = np.unique(claims, return_index=True)
    hits[first_claim[claimed >= 0]] = True
    exempt = np.array([_exempt(truth) for truth in truths] + [False])  # the last is for claims of -1
    result: np.ndarray = hits[~exempt[claims]]
    return result


def _boxes_xyxy(rows: Sequence[Row]) -> np.ndarray:
    boxes = np.array([row["bbox"] for row in rows], dtype=np.float64)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def _area_under_curve(hits: np.ndarray, num_wanted: int, interpolation: Interpolation) -> float:
    """AP of one class from its detections by falling score.

    The precision at a recall is the best one at that recall or a higher one.
    """
    num_right = np.cumsum(hits)
    precision = num_right / np.arange(1, len(hits) + 1)
    best_precision = np.maximum.accumulate(precision[::-1])[::-1]
    if interpolation == "every_point":
        # Recall grows by 1 / num_wanted at each hit and nowhere else.
        return float(best_precision[hits].sum() / num_wanted)
    # In floating point, as everybody's code has it: 9 right of 15 miss the level 6 * 0.1 > 9 / 15. Published
    # numbers contain this rounding.
    starts = np.searchsorted(num_right / num_wanted, np.linspace(0, 1, 11))
    return float(best_precision[starts[starts < len(hits)]].sum() / 11)

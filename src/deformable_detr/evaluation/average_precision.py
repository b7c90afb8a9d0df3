"""COCO's and Pascal VOC's average precision of detections against a ground truth.

Both metrics take the same two arguments. The ground truth is a COCO dictionary with `images`, `categories`
and `annotations`; an annotation has `bbox` [x, y, width, height] in pixels, `area`, `iscrowd` and, for
Pascal's metric, `difficult`. `evaluation.ground_truth_of` creates it from any data set. The detections
are COCO results rows: `image_id`, `category_id`, `bbox`, `score` (`Detections.to_coco`).

COCO's numbers come from faster-coco-eval, and the tests compare them with pycocotools. Pascal's are computed
here. A value of -1 means that there is no true box, or none of that size or class.
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
COCO_LIMIT = 100  # the maximum number of detections of an image and class that count
CLASS_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")


@dataclass(frozen=True)
class CocoNumbers:
    """COCO's numbers in [0, 1]; a number is -1 if there is no true box (of that size).

    Attributes:
        summary: the twelve numbers, by the names in `COCO_METRICS`.
        classes: the numbers of each class that has true boxes, by category id and by the names in
            `CLASS_METRICS`.
    """

    summary: dict[str, float]
    classes: dict[int, dict[str, float]]


def coco_average_precision(
    ground_truth: Mapping[str, Any], detections: Sequence[Row], *, limit: int = COCO_LIMIT
) -> dict[str, Any]:
    """Compute COCO's twelve numbers for boxes, and AP and AP50 of each class that has true boxes.

    The arguments are those of `coco_numbers`.

    Returns:
        AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl in [0, 1], or -1 if there is no true
        box (of that size), and `per_class`: {name: {"AP", "AP50"}}. If several classes share a name, the
        category id is added to it.

    Raises:
        UserError: if a detection names an image or category that the ground truth lacks, has a
            box or score that is missing or not finite, or has a box of negative width or height.
    """
    numbers = coco_numbers(ground_truth, detections, limit=limit)
    names = _class_names(ground_truth["categories"])
    per_class = {
        names[category_id]: {"AP": row["AP"], "AP50": row["AP50"]}
        for category_id, row in numbers.classes.items()
    }
    return {**numbers.summary, "per_class": per_class}


def coco_numbers(
    ground_truth: Mapping[str, Any], detections: Sequence[Row], *, limit: int = COCO_LIMIT
) -> CocoNumbers:
    """Compute COCO's numbers for boxes, over all classes together and for each class.

    Args:
        ground_truth: a COCO dictionary with `images`, `categories` and `annotations`, which is not changed.
            A missing `area` is replaced by width times height, and a missing `iscrowd` by 0.
        detections: COCO results rows, with `image_id`, `category_id`, `bbox` and `score`.
        limit: the maximum number of detections of each image and class that count, best first. A value above
            COCO's 100 suits images with more objects (AR100 still counts 100); one below 100 has no effect.

    Raises:
        UserError: if a detection names an image or category that the ground truth lacks, has a
            box or score that is missing or not finite, or has a box of negative width or height.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    check_detections(ground_truth, detections)
    images = [{"id": image["id"]} for image in ground_truth["images"]]
    categories = [{"id": category["id"]} for category in ground_truth["categories"]]

    def indexed(annotations: Iterable[dict[str, Any]]) -> Any:
        # Ids start at 1, because the matcher takes an id of 0 for "not matched".
        rows = [{**annotation, "id": number} for number, annotation in enumerate(annotations, start=1)]
        return COCO({"images": images, "categories": categories, "annotations": rows})

    target = indexed(
        {
            "image_id": annotation["image_id"],
            "category_id": annotation["category_id"],
            "bbox": [float(value) for value in annotation["bbox"]],
            "area": annotation.get("area", annotation["bbox"][2] * annotation["bbox"][3]),
            "iscrowd": annotation.get("iscrowd", 0),
        }
        for annotation in ground_truth["annotations"]
    )
    predicted = indexed(
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
    evaluation = COCOeval_faster(target, predicted, iouType="bbox", print_function=lambda *_: None)
    evaluation.params.maxDets = sorted({1, 10, COCO_LIMIT, max(limit, COCO_LIMIT)})
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()

    values = [float(value) for value in evaluation.stats]
    if limit > COCO_LIMIT:
        del values[COCO_METRICS.index("AR100") + 1]  # the recall with `limit`
    summary = dict(zip(COCO_METRICS, values, strict=True))
    return CocoNumbers(summary, _class_metrics(evaluation))


def _class_metrics(evaluation: Any) -> dict[int, dict[str, float]]:
    """Return the `CLASS_METRICS` of each class that has true boxes, by category id."""
    precision = evaluation.eval["precision"]  # (IoU thresholds, recalls, classes, area ranges, limits)
    recall = evaluation.eval["recall"]  # (IoU thresholds, classes, area ranges, limits)
    classes = {}
    for index, category_id in enumerate(evaluation.params.catIds):
        curves = precision[:, :, index, :, -1]  # (IoU thresholds, recalls, area ranges)
        if (curves[..., 0] > -1).any():
            by_area = [float(curves[..., area].mean()) for area in range(4)]
            values = (
                by_area[0], float(curves[0, :, 0].mean()), float(curves[5, :, 0].mean()), *by_area[1:],
                float(recall[:, index, 0, 2].mean()),
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
    """Compute Pascal VOC's average precision of each class, and their mean.

    In descending order of score (and in the order of rows, if scores are equal), each detection claims the
    true box of its image and class that it overlaps most, if their IoU is at least `iou_threshold`. The first
    detection to claim a box is right; later ones are duplicates and wrong, like those that claim no box.
    Boxes that are difficult (or crowds) need not be found, and detections that claim them are neither right
    nor wrong.

    Args:
        ground_truth: a COCO dictionary with `images`, `categories` and `annotations`, which may have
            `difficult`.
        detections: COCO results rows, with `image_id`, `category_id`, `bbox` and `score`; their number per
            image is not limited.
        iou_threshold: the minimum IoU, in (0, 1].
        interpolation: `every_point` (VOC 2010 and later: the area under the curve) or `11_point`
            (VOC 2007: the mean precision at recall 0, 0.1, …, 1).
        plus_one: True to count the last pixel in widths and heights, x1 - x0 + 1, as Pascal's code does.

    Returns:
        `mAP`, which is -1 if no box needs to be found, and `per_class`: {name: {"AP"}} of the classes with
        boxes that need to be found. If several classes share a name, the category id is added to it.

    Raises:
        UserError: if a detection names an image or category that the ground truth lacks, has a box or score
            that is missing or not finite, or has a box of negative width or height, or if an option is out of
            range.
    """
    check_voc_options(iou_threshold, interpolation)
    check_detections(ground_truth, detections)
    truths_of, predicted_of = defaultdict(list), defaultdict(list)
    for annotation in ground_truth["annotations"]:
        truths_of[annotation["category_id"]].append(annotation)
    for row in detections:
        predicted_of[row["category_id"]].append(row)

    per_class = {}
    for category_id, name in _class_names(ground_truth["categories"]).items():
        truths = truths_of[category_id]
        num_targets = sum(not _exempt(truth) for truth in truths)
        if num_targets:
            hits = _voc_hits(truths, predicted_of[category_id], iou_threshold, plus_one)
            per_class[name] = {"AP": _area_under_curve(hits, num_targets, interpolation)}
    mean = float(np.mean([numbers["AP"] for numbers in per_class.values()])) if per_class else -1.0
    return {"mAP": mean, "per_class": per_class}


def check_voc_options(iou_threshold: float, interpolation: str) -> None:
    """Raise a `UserError` if an option of `voc_average_precision` is out of range.

    Callers can thus check the options before they start long work.
    """
    if not 0 < iou_threshold <= 1:
        raise UserError(f"iou_threshold must be in (0, 1], not {iou_threshold}.")
    if interpolation not in ("every_point", "11_point"):
        raise UserError(f"interpolation must be every_point or 11_point, not {interpolation}.")


def check_detections(ground_truth: Mapping[str, Any], detections: Sequence[Row]) -> None:
    """Raise a `UserError` if a row of `detections` cannot be scored against `ground_truth`.

    The message names the first such row.
    """
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
                f"detection {index} has image_id {row['image_id']!r}, which is not one of the "
                f"{len(image_ids)} images of the ground truth: score it against the split it comes from."
            )
        if row["category_id"] not in category_ids:
            raise UserError(
                f"detection {index} has category_id {row['category_id']!r}, which is not one of the "
                f"{len(category_ids)} categories of the ground truth: use the data set's own ids."
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
    """Return the class names by category id, in the data set's order.

    If several ids share a name, each id is added to its name.
    """
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
    truths: Sequence[Row], predicted: Sequence[Row], iou_threshold: float, plus_one: bool
) -> np.ndarray:
    """Match the detections of one class by Pascal's rules.

    Returns:
        A mask that is True for right and False for wrong detections, in descending order of score. It
        leaves out the detections that are neither.
    """
    order = np.argsort([-row["score"] for row in predicted], kind="stable")
    ranked = [predicted[index] for index in order]
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


def _area_under_curve(hits: np.ndarray, num_targets: int, interpolation: Interpolation) -> float:
    """Compute the AP of one class.

    The precision at a recall is the best precision at that recall or a higher one.

    Args:
        hits: a mask that is True for right and False for wrong detections, in descending order of score.
        num_targets: the number of true boxes that should be found.
    """
    num_right = np.cumsum(hits)
    precision = num_right / np.arange(1, len(hits) + 1)
    best_precision = np.maximum.accumulate(precision[::-1])[::-1]
    if interpolation == "every_point":
        # Recall grows by 1 / num_targets at each hit and nowhere else.
        return float(best_precision[hits].sum() / num_targets)
    # This compares floats, as all other implementations do: 9 right detections of 15 true boxes do not reach
    # the level 6 * 0.1 > 9 / 15. Published numbers contain this rounding.
    starts = np.searchsorted(num_right / num_targets, np.linspace(0, 1, 11))
    return float(best_precision[starts[starts < len(hits)]].sum() / 11)

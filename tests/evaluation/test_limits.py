"""limits.py: no object is cut off silently in images with more than a hundred."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deformable_detr.data.formats import read_split
from deformable_detr.data.records import Split
from deformable_detr.evaluation.average_precision import coco_numbers
from deformable_detr.evaluation.limits import usual_limit


@pytest.mark.parametrize(("objects", "crowds", "limit"), [(100, 30, 100), (101, 0, 202), (0, 0, 100)])
def test_the_limit_follows_the_fullest_image(tiny_data: Path, objects: int, crowds: int, limit: int) -> None:
    split = read_split(tiny_data, "train")
    count = objects + crowds
    full = replace(
        split.images[0],
        boxes_xyxy=np.tile([0.0, 0.0, 9.0, 9.0], (count, 1)),
        labels=np.zeros(count, dtype=np.int64),
        crowd=np.arange(count) < crowds,
    )
    assert usual_limit(split_of(split, full)) == limit


def split_of(split: Split, image: Any) -> Split:
    return replace(split, images=(image,))


def test_more_than_a_hundred_objects_of_a_class_can_be_found() -> None:
    boxes = [[20.0 * (n % 15), 20.0 * (n // 15), 10.0, 10.0] for n in range(150)]
    truth = {
        "images": [{"id": 1, "height": 300, "width": 300}],
        "categories": [{"id": 7, "name": "cell"}],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": 7, "bbox": box} for n, box in enumerate(boxes, start=1)
        ],
    }
    found = [
        {"image_id": 1, "category_id": 7, "bbox": box, "score": 1 - n / 1000} for n, box in enumerate(boxes)
    ]
    usual, enough = coco_numbers(truth, found), coco_numbers(truth, found, limit=300)
    assert usual.summary["AP"] == pytest.approx(2 / 3, abs=0.01)
    assert enough.summary["AP"] == pytest.approx(1)
    assert enough.summary["APs"] == pytest.approx(1)
    for name in ("AR1", "AR10", "AR100"):
        assert enough.summary[name] == usual.summary[name]
    assert enough.summary["ARs"] == pytest.approx(1)
    assert enough.classes[7]["AP50"] == pytest.approx(1)
    assert enough.classes[7]["AR100"] == pytest.approx(2 / 3, abs=0.01)

"""COCO's sizes by area: the limits are those of pycocotools."""

from __future__ import annotations

import numpy as np
from pycocotools.cocoeval import Params

from deformable_detr.evaluation.areas import METRIC_LETTERS, SIDES, SIZES, count_sizes, size_ranges


def test_the_limits_are_cocos() -> None:
    params = Params("bbox")
    assert params.areaRngLbl[1:] == list(SIZES) == list(METRIC_LETTERS)
    assert [low for low, _ in params.areaRng[1:]] == [0, *np.square(SIDES)]


def test_counts() -> None:
    areas = np.array([0.0, 1023.9, 1024.0, 9215.0, 9216.0, 1e9])
    assert count_sizes(areas) == {"small": 2, "medium": 2, "large": 2}
    assert count_sizes(np.zeros(0)) == dict.fromkeys(SIZES, 0)
    assert size_ranges() == {"small": "under 32²", "medium": "32² to 96²", "large": "96² or more"}

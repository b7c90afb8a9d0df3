"""The number of detections of an image that evaluation considers."""

from __future__ import annotations

from ..data.records import Split
from .average_precision import COCO_LIMIT


def usual_limit(split: Split) -> int:
    """Return COCO's 100, or twice the number of objects of the fullest image if that image has more.

    Otherwise objects beyond the hundredth of an image could not be found. The number depends only on the
    data, so that models can be compared.
    """
    most = max((int((~image.crowd).sum()) for image in split.images), default=0)
    return COCO_LIMIT if most <= COCO_LIMIT else 2 * most

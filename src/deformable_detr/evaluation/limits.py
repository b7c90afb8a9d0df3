"""The maximum number of detections of an image that evaluation considers."""

from __future__ import annotations

from ..data.records import Split
from .average_precision import COCO_LIMIT


def usual_limit(split: Split) -> int:
    """Return COCO's 100 or, if an image has more than 100 objects, twice the largest number in any image.

    With COCO's limit, not all objects of such an image could be found. Crowds are not counted. The result
    depends only on the data, so that models can be compared.
    """
    most = split.max_objects
    return COCO_LIMIT if most <= COCO_LIMIT else 2 * most

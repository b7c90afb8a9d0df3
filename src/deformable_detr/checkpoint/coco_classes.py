"""COCO's 80 class names by id, from 0 to 90.

The names are the class table of the published checkpoints, which have one logit for each of these 91 ids
(specification §1.1).
"""

from __future__ import annotations

from ..detections import ClassTable

# Indexed by id; None marks the eleven ids that COCO's annotations never use.
COCO_NAMES_BY_ID: tuple[str | None, ...] = (
    *(None, "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"),
    *("traffic light", "fire hydrant", None, "stop sign", "parking meter", "bench", "bird", "cat", "dog"),
    *("horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", None, "backpack", "umbrella", None),
    *(None, "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite"),
    *("baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle", None),
    *("wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange"),
    *("broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed"),
    *(None, "dining table", None, None, "toilet", None, "tv", "laptop", "mouse", "remote", "keyboard"),
    *("cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", None, "book", "clock", "vase"),
    *("scissors", "teddy bear", "hair drier", "toothbrush"),
)

# The class table of models that have a logit for each name and none for unused ids.
COCO_80 = ClassTable(
    tuple(name for name in COCO_NAMES_BY_ID if name is not None),
    tuple(index for index, name in enumerate(COCO_NAMES_BY_ID) if name is not None),
)


def class_table_for(num_classes: int) -> ClassTable:
    """Return the class table of a model without class names: COCO's for 91 classes, otherwise "class 0", …"""
    if num_classes == len(COCO_NAMES_BY_ID):
        return ClassTable(COCO_NAMES_BY_ID, tuple(range(num_classes)))
    return ClassTable.from_names([f"class {index}" for index in range(num_classes)])

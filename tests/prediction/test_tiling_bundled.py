"""Tiles with a real model: the bundled one on a picture that is far larger than what it was trained on."""

from __future__ import annotations

import json

import numpy as np
import pytest
import supervision
from PIL import Image

from deformable_detr.data.drawn import generate
from deformable_detr.errors import UserError
from deformable_detr.inference.detector import Detector
from deformable_detr.inference.loading import load
from deformable_detr.prediction import predict_tiled

ROWS = COLUMNS = 6
SIZE = (120, 160)
THRESHOLD = 0.2


@pytest.fixture(scope="module")
def bundled() -> Detector:
    try:
        return load("demo", device="cpu")
    except UserError as error:
        pytest.skip(f"the bundled model is not here: {error}")


@pytest.fixture(scope="module")
def mosaic(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, np.ndarray]:
    """36 drawn pictures side by side (H, W, 3), and the boxes (N, 4) of all their objects."""
    root = generate(tmp_path_factory.mktemp("data"), train=1, val=ROWS * COLUMNS, image_size=SIZE, seed=77)
    content = json.loads((root / "annotations" / "instances_val.json").read_text())
    picture = np.zeros((ROWS * SIZE[0], COLUMNS * SIZE[1], 3), np.uint8)
    boxes = []
    for number, image in enumerate(content["images"]):
        y, x = number // COLUMNS * SIZE[0], number % COLUMNS * SIZE[1]
        with Image.open(root / "val" / image["file_name"]) as part:
            picture[y : y + SIZE[0], x : x + SIZE[1]] = np.asarray(part.convert("RGB"))
        for annotation in content["annotations"]:
            if annotation["image_id"] == image["id"]:
                left, top, width, height = annotation["bbox"]
                boxes.append([x + left, y + top, x + left + width, y + top + height])
    return picture, np.array(boxes)


def recall(found_xyxy: np.ndarray, boxes: np.ndarray) -> float:
    """The share of objects that some detection frames, whatever its class."""
    overlaps = supervision.box_iou_batch(boxes, found_xyxy)
    return float((overlaps.max(axis=1, initial=0) >= 0.5).mean())


def each_alone(detector: Detector, picture: np.ndarray) -> np.ndarray:
    """(N, 4) what the model finds in each of the 36 pictures by itself, in pixels of the mosaic."""
    found = []
    for y in range(0, ROWS * SIZE[0], SIZE[0]):
        for x in range(0, COLUMNS * SIZE[1], SIZE[1]):
            part = detector.predict(picture[y : y + SIZE[0], x : x + SIZE[1]], THRESHOLD)
            found.append(part.boxes_xyxy + np.array([x, y, x, y]))
    return np.concatenate(found)


@pytest.mark.slow
def test_tiles_find_what_the_whole_picture_hides(
    bundled: Detector, mosaic: tuple[np.ndarray, np.ndarray]
) -> None:
    """Nearly all that the model can find in such pictures; the mosaic as a whole shows it next to nothing."""
    picture, boxes = mosaic
    alone = recall(each_alone(bundled, picture), boxes)
    assert alone > 0.2
    assert recall(bundled.predict(picture, THRESHOLD).boxes_xyxy, boxes) < alone / 4
    assert recall(predict_tiled(bundled, picture, THRESHOLD).boxes_xyxy, boxes) > 0.75 * alone

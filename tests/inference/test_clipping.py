"""Boxes of a prediction end at the sides of the picture, whichever way it is made; `detect` leaves them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import deformable_detr as dd
from deformable_detr.detections import Detections
from deformable_detr.inference.backend import Backend
from deformable_detr.inference.detector import Detector
from deformable_detr.inference.pictures import read_picture
from deformable_detr.prediction import predict_tiled
from deformable_detr.prediction.tiling import Tiling
from deformable_detr.structures import ImageBatch, Predictions
from tests.support.serving import form, picture, png, running, tiny_detector


class Beyond(Backend):
    """The same predictions, with boxes as large as the picture wherever their centre is."""

    def __init__(self, inner: Backend) -> None:
        self.inner = inner

    def __call__(self, batch: ImageBatch) -> Predictions:
        found = self.inner(batch)
        boxes = found.boxes_cxcywh.clone()
        boxes[..., 2:] = 1.0
        return Predictions(found.logits, boxes)


@pytest.fixture(scope="module")
def detector() -> Detector:
    detector = tiny_detector()
    detector.backend = Beyond(detector.backend)
    return detector


PICTURE = picture(0, (90, 120))


def assert_inside(boxes_xyxy: np.ndarray) -> None:
    assert len(boxes_xyxy) > 0
    assert boxes_xyxy.min() == 0
    assert boxes_xyxy[:, 2].max() <= 120
    assert boxes_xyxy[:, 3].max() <= 90
    assert (boxes_xyxy[:, :2] < boxes_xyxy[:, 2:]).all()


def test_predict(detector: Detector) -> None:
    assert_inside(detector.predict(PICTURE, 0.0).boxes_xyxy)
    boxes = unclipped(detector).boxes_xyxy
    assert boxes.min() < 0
    assert (boxes[:, 2:].max(axis=0) > [120, 90]).any()


def unclipped(detector: Detector) -> Detections:
    """What `evaluate` measures."""
    pixels = detector.preprocess(read_picture(PICTURE, detector.data.max_pixels))
    return detector.detect([pixels], [(90, 120)])[0]


def test_tiles(detector: Detector) -> None:
    pytest.importorskip("supervision")
    assert_inside(predict_tiled(detector, PICTURE, 0.0, tiling=Tiling(64)).boxes_xyxy)


@pytest.mark.anyio
async def test_the_server(detector: Detector) -> None:
    async with running(detector) as (_, client):
        answer = await client.post("/v1/detect?threshold=0", files=form(png(PICTURE)))
    rows = answer.json()["results"][0]["detections"]
    assert_inside(np.array([row["box_xyxy"] for row in rows]))


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_exported_models(suffix: str, tmp_path: Path) -> None:
    for name in ("onnx", "onnxruntime", "openvino"):
        pytest.importorskip(name)
    from tests.support.exported_files import write_toy

    write_toy(tmp_path / f"toy{suffix}")
    exported = dd.load(tmp_path / f"toy{suffix}")
    exported.backend = Beyond(exported.backend)
    assert_inside(exported.predict(PICTURE, 0.0).boxes_xyxy)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"

"""The page: it holds the explanation's numbers, is well-formed whatever the names are, and loads nothing."""

from __future__ import annotations

import base64
import json
import re
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deformable_detr.config import RunConfig
from deformable_detr.detections import ClassTable
from deformable_detr.explain.page import explanation_page, page
from deformable_detr.inference.detector import Detector
from deformable_detr.inference.loading import new_checkpoint
from tests.support.html_elements import NestedElements
from tests.support.small_models import randomise
from tests.support.tiny import as_detr, tiny_config

EVIL = '</script><img src=x onerror="alert(1)">&amp;{{data}}'
PICTURE = np.random.default_rng(3).integers(0, 256, (64, 80, 3), dtype=np.uint8)


def detector(config: RunConfig) -> Detector:
    names = ClassTable.from_names((EVIL, "größer"))
    checkpoint = new_checkpoint(config.model, names, config.data, "r", None)
    randomise(checkpoint.model)
    return Detector.of(checkpoint, "cpu")


class Reader(NestedElements):
    """Keeps the text of each element."""

    def __init__(self, text: str) -> None:
        self.texts: dict[str, str] = {}
        super().__init__(text)

    def handle_data(self, data: str) -> None:
        _, attributes = self.elements[-1] if self.elements else ("", {})
        key = attributes.get("id") or (self.open[-1] if self.open else "")
        self.texts[key] = self.texts.get(key, "") + data


def data_of(text: str) -> Any:
    return json.loads(Reader(text).texts["data"])


def decoded(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<u2").astype(float) / 65535


@pytest.mark.parametrize("places", [(), [(10.0, 20.0), (11.0, 20.0), (70.0, 50.0)]])
def test_the_page_holds_the_explanation(places: Any) -> None:
    subject = detector(tiny_config(queries="proposals"))
    explanation = subject.explain(PICTURE, 0.1, at=places)
    data = data_of(explanation_page(explanation, subject.selection(0.1), "picture"))
    assert data["threshold"] == 0.1
    queries = explanation.queries
    assert [row["name"] for row in data["detections"]] == list(explanation.detections.names)
    assert [row["query"] for row in data["detections"]] == queries.indices.tolist()
    np.testing.assert_allclose([row["boxes"] for row in data["detections"]], queries.boxes_xyxy, atol=0.006)
    proposals = [row["proposal"] for row in data["detections"]]
    np.testing.assert_allclose(proposals, queries.proposals.boxes_xyxy, atol=0.006)
    shape = queries.attention.weights.shape
    assert (data["heads"], data["levels"], data["points"]) == shape[2:]
    weights = decoded(data["decoder"]["weights"]).reshape(shape) * data["most"]
    np.testing.assert_allclose(weights, np.minimum(queries.attention.weights, data["most"]), atol=1e-4)
    locations = (decoded(data["decoder"]["locations"]).reshape(*shape, 2) * 2 - 0.5) * np.array([80, 64])
    inside = (queries.attention.locations > 0) & (queries.attention.locations < np.array([80, 64]))
    np.testing.assert_allclose(locations[inside], queries.attention.locations[inside], atol=0.01)
    if not places:
        assert data["encoder"] is None
        return
    # a token that two places share is there once
    assert data["tokens"] == [
        [0, 12.0, 20.0],
        [0, 68.0, 52.0],
        [1, 8.0, 24.0],
        [1, 72.0, 56.0],
        [2, 13.33, 16.0],  # three columns for 80 pixels
        [2, 66.67, 48.0],
    ]
    encoder = explanation.encoder.attention.weights
    rows = [0, 6, 1, 7, 2, 8]  # of place 1 and 3, level by level
    found = decoded(data["encoder"]["weights"]).reshape(6, *encoder.shape[1:]) * data["most"]
    np.testing.assert_allclose(found, np.minimum(encoder[rows], data["most"]), atol=1e-4)


def test_a_page_of_detr_has_cells() -> None:
    text, shown = page(detector(as_detr(tiny_config())), PICTURE, 0.05, title="x")
    data = data_of(text)
    assert data["grid"] == [2, 3]
    assert (data["levels"], data["points"], shown) == (1, 6, len(data["detections"]))
    assert data["decoder"]["locations"] == ""
    assert len(decoded(data["decoder"]["weights"])) == shown * 2 * 4 * 6


def test_names_are_escaped_and_nothing_is_loaded() -> None:
    text, shown = page(detector(tiny_config()), PICTURE, 0.1, title=EVIL)
    reader = Reader(text)
    assert shown > 0
    assert [tag for tag, _ in reader.elements].count("script") == 2
    images = [attributes for tag, attributes in reader.elements if tag == "img"]
    assert len(images) == 1  # EVIL's is text
    assert images[0]["alt"] == EVIL
    assert reader.texts["h1"] == EVIL
    policy = next(a for _, a in reader.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"].startswith("default-src 'none'; img-src data:")
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", text)
    picture = Image.open(BytesIO(base64.b64decode(images[0]["src"].split(",")[1])))
    assert picture.size == (80, 64)


def test_every_control_has_a_name() -> None:
    text, _ = page(detector(tiny_config()), PICTURE, 0.1, title="x")
    unlabelled = re.sub(r"<label.*?</label>", "", text.split("<script")[0], flags=re.DOTALL)
    assert "<input" not in unlabelled
    assert re.search(r'<canvas[^>]*tabindex="0"[^>]*', text)


def test_a_large_picture_is_shown_smaller_and_no_detection_is_a_page_too() -> None:
    large = np.zeros((1000, 2000, 3), np.uint8)
    text, shown = page(detector(tiny_config()), large, 1.0, title="x")
    reader = Reader(text)
    source = next(attributes["src"] for tag, attributes in reader.elements if tag == "img")
    assert shown == 0
    assert Image.open(BytesIO(base64.b64decode(source.split(",")[1]))).size == (1600, 800)
    assert data_of(text)["image_size"] == [1000, 2000]

"""Test-time augmentation: views map back, what all views see is one object, and one view changes nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from deformable_detr.cli import main
from deformable_detr.data.scenes import CLASS_NAMES
from deformable_detr.detections import ClassTable, Detections
from deformable_detr.errors import UserError
from deformable_detr.evaluation import evaluate
from deformable_detr.inference.detector import Backend, Detector
from deformable_detr.inference.loading import load, new_checkpoint
from deformable_detr.inference.tta import SCALES, MergedViews, View, augmented, merge, views_of
from deformable_detr.structures import ImageBatch, Predictions
from tests.support.matching import assert_same_detections
from tests.support.small_models import randomise
from tests.support.tiny import tiny_config

PICTURES = [np.random.default_rng(n).integers(0, 256, (64, 80 + n, 3), dtype=np.uint8) for n in range(3)]


def tiny_detector() -> Detector:
    config = tiny_config()
    checkpoint = new_checkpoint(
        config.model, ClassTable.from_names(CLASS_NAMES), config.data, "deformable_detr_lite", None
    )
    randomise(checkpoint.model)
    return Detector.of(checkpoint, "cpu")


def detections(
    boxes: Sequence[Sequence[float]], scores: Sequence[float], labels: Sequence[int]
) -> Detections:
    numbers = np.array(labels, dtype=np.int64)
    return Detections(
        boxes_xyxy=np.array(boxes, dtype=np.float32).reshape(-1, 4),
        scores=np.array(scores, dtype=np.float32),
        labels=numbers,
        category_ids=numbers + 10,
        names=tuple(f"class {label}" for label in labels),
        image_size=(100, 200),
    )


def test_one_view_is_the_plain_detector() -> None:
    plain = tiny_detector()
    for found, expected in zip(
        plain.augmented(MergedViews(plain, [View(1.0, False)])).predict(list(PICTURES), 0.0),
        plain.predict(list(PICTURES), 0.0),
        strict=True,
    ):
        np.testing.assert_array_equal(found.boxes_xyxy, expected.boxes_xyxy)
        np.testing.assert_array_equal(found.scores, expected.scores)
        np.testing.assert_array_equal(found.labels, expected.labels)


@given(
    st.lists(st.tuples(*[st.integers(0, 1000)] * 4), max_size=5),
    st.integers(1, 4000),
)
def test_a_flipped_view_maps_back_exactly(boxes: list[tuple[int, ...]], width: int) -> None:
    array = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    flipped = View(1.0, True).back(array, width)
    np.testing.assert_array_equal(View(1.0, True).back(flipped, width), array)
    np.testing.assert_array_equal(flipped[:, 2] - flipped[:, 0], array[:, 2] - array[:, 0])
    np.testing.assert_array_equal(View(0.5, False).back(array, width), array)


class BrightPixels(Backend):
    """Finds one object: the box around the bright pixels of a picture, with a score of one half."""

    def __init__(self, num_logits: int) -> None:
        self.num_logits = num_logits
        self.shapes: list[tuple[int, int]] = []

    def __call__(self, batch: ImageBatch) -> Predictions:
        boxes = []
        for pixels in batch.pixels:
            height, width = pixels.shape[1:]
            self.shapes.append((height, width))
            ys, xs = torch.nonzero(pixels.mean(0) > 0, as_tuple=True)
            x0, y0, x1, y1 = (
                xs.min() / width,
                ys.min() / height,
                (xs.max() + 1) / width,
                (ys.max() + 1) / height,
            )
            boxes.append(torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]))
        logits = torch.full((len(boxes), 1, self.num_logits), -20.0)
        logits[:, :, 2] = 0.0
        return Predictions(logits, torch.stack(boxes)[:, None])


@given(st.integers(0, 60), st.integers(0, 40), st.integers(8, 30), st.integers(8, 20))
def test_all_views_of_an_object_are_one_detection_where_it_is(
    left: int, top: int, width: int, height: int
) -> None:
    plain = tiny_detector()
    backend = BrightPixels(plain.config.num_classes)
    detector = augmented(Detector(plain.checkpoint, backend))
    picture = Image.new("RGB", (96, 64), "black")
    ImageDraw.Draw(picture).rectangle((left, top, left + width - 1, top + height - 1), fill="white")
    found = detector.predict(picture, 0.3)
    assert found.names == (CLASS_NAMES[2],)
    assert found.scores == pytest.approx([0.5])
    expected = [left, top, min(left + width, 96), min(top + height, 64)]
    assert found.boxes_xyxy[0] == pytest.approx(expected, abs=1.0)  # a pixel of the smallest view
    assert len(set(backend.shapes)) == len(SCALES)
    assert len(backend.shapes) == 2 * len(SCALES)


SEPARATE = detections([[0, 0, 10, 10], [50, 0, 70, 30], [100, 50, 190, 90]], [0.9, 0.5, 0.4], [0, 1, 0])


@given(st.integers(2, 6), st.randoms(use_true_random=False))
def test_equal_detections_of_all_views_are_one(views: int, random: Any) -> None:  # type: ignore[no-untyped-def]
    shuffled = []
    for _ in range(views):
        order = random.sample(range(len(SEPARATE)), len(SEPARATE))
        shuffled.append(SEPARATE.take(np.array(order)))
    merged = merge(shuffled)
    np.testing.assert_allclose(merged.boxes_xyxy, SEPARATE.boxes_xyxy, rtol=1e-5)
    np.testing.assert_allclose(merged.scores, SEPARATE.scores, rtol=1e-6)
    assert merged.labels.tolist() == SEPARATE.labels.tolist()
    assert merged.category_ids.tolist() == SEPARATE.category_ids.tolist()
    assert merged.names == SEPARATE.names


BOXES = st.tuples(st.floats(0, 150), st.floats(0, 60), st.floats(0, 50), st.floats(0, 40))
VIEWS = st.lists(
    st.lists(st.tuples(BOXES, st.floats(1 / 64, 1, width=32), st.integers(0, 2)), max_size=6),
    min_size=2,
    max_size=4,
)


@example([[((0.0, 0.0, 1e-6, 1.0), 0.5, 2)], [((0.0, 0.0, 1e-6, 1.0), 0.5, 2)]], 0.5)
@given(VIEWS, st.floats(0.3, 0.9))
def test_merging_invents_nothing(
    seen: list[list[tuple[tuple[float, ...], float, int]]], overlap: float
) -> None:
    views = [
        detections(
            [(x, y, x + w, y + h) for (x, y, w, h), _, _ in view],
            [score for _, score, _ in view],
            [label for _, _, label in view],
        )
        for view in seen
    ]
    merged = merge(views, overlap)
    total = sum(len(view) for view in views)
    assert len(merged) <= total
    assert (len(merged) > 0) == (total > 0)
    assert list(merged.scores) == sorted(merged.scores, reverse=True)
    for label in range(3):
        own = [view.boxes_xyxy[view.labels == label] for view in views]
        boxes, found = np.concatenate(own), merged.boxes_xyxy[merged.labels == label]
        assert (len(found) > 0) == (len(boxes) > 0)
        if len(found):  # a mean lies between what it is the mean of
            assert (found >= boxes.min(0) - 1e-3).all()
            assert (found <= boxes.max(0) + 1e-3).all()
            best = max(float(view.scores[view.labels == label].max(initial=0)) for view in views)
            assert float(merged.scores[merged.labels == label].max()) <= best + 1e-6
    # Whatever the order of the views is.
    again = merge(views[::-1], overlap)
    assert len(again) == len(merged)


def test_the_box_is_weighted_by_score_and_a_view_without_it_counts_nothing() -> None:
    views = [
        detections([[0, 0, 10, 10]], [0.6], [0]),
        detections([[0, 0, 10, 12]], [0.2], [0]),
        detections([[0, 0, 10, 10]], [0.8], [1]),
        detections([], [], []),
    ]
    merged = merge(views)
    assert merged.labels.tolist() == [1, 0]  # 0.8 / 4 each: the one that was surer once is first
    assert merged.scores == pytest.approx([0.2, 0.2])
    assert merged.boxes_xyxy[1] == pytest.approx([0, 0, 10, 10.5])
    assert merge(views, max_detections=1).names == ("class 1",)
    assert len(merge([views[3], views[3]])) == 0


def test_neighbours_in_a_batch_change_nothing() -> None:
    detector = augmented(tiny_detector(), (0.75, 1.0))
    together = detector.predict(list(PICTURES), 0.0)
    for picture, expected in zip(PICTURES, together, strict=True):
        alone = detector.predict(picture, 0.0)
        assert_same_detections(alone, expected, score=1e-5, box=1e-3)


def test_explaining_is_the_plain_detectors() -> None:
    plain = tiny_detector()
    explained, expected = augmented(plain).explain(PICTURES[0], 0.05), plain.explain(PICTURES[0], 0.05)
    np.testing.assert_array_equal(explained.detections.boxes_xyxy, expected.detections.boxes_xyxy)


def test_the_limit_of_load_holds_for_all_views(tmp_path: Path) -> None:
    limited = augmented(load(tiny_detector().save(tmp_path / "model"), "cpu", max_pixels=1000))
    with pytest.raises(UserError, match=r"1,000"):
        limited.predict(PICTURES[0])


def test_a_detector_with_views_gets_other_views() -> None:
    plain = tiny_detector()
    twice, once = augmented(augmented(plain), (0.75, 1.0)), augmented(plain, (0.75, 1.0))
    found, expected = twice.predict(PICTURES[0], 0.0), once.predict(PICTURES[0], 0.0)
    np.testing.assert_array_equal(found.boxes_xyxy, expected.boxes_xyxy)
    np.testing.assert_array_equal(found.scores, expected.scores)


@pytest.mark.parametrize("scales", [(), (1.0, 1.0), (0.01,), (11.0,)])
def test_scales_that_make_no_sense_are_refused(scales: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="tta_scales must be different numbers"):
        views_of(scales)


def test_evaluate_with_augmentation(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = tiny_detector()
    usual = evaluate(plain, tiny_data, tta=True, progress=False)
    assert usual["tta_scales"] == list(SCALES)
    assert "tta_scales" not in evaluate(plain, tiny_data, progress=False)
    folder = plain.save(tmp_path / "model")
    command = ["evaluate", str(folder), str(tiny_data), "--device", "cpu"]
    assert main([*command, "--tta", "--output", str(tmp_path / "m.json")]) == 0
    assert f'"AP": {usual["AP"]}' in (tmp_path / "m.json").read_text()
    assert main([*command, "--tta-scales", "[1]"]) == 0
    capsys.readouterr()
    assert main([*command, "--tta-scales", "[1,1]"]) == 2
    assert "tta_scales must be different" in capsys.readouterr().err


def test_predict_with_augmentation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = tiny_detector()
    folder, picture, out = plain.save(tmp_path / "model"), tmp_path / "a.png", tmp_path / "out"
    Image.fromarray(PICTURES[0]).save(picture)
    expected = augmented(plain, (0.75, 1.0)).predict(picture, 0.1)
    command = ["predict", str(folder), str(picture), "--output", str(out), "--threshold", "0.1"]
    assert main([*command, "--device", "cpu", "--tta-scales", "[0.75,1]"]) == 0
    rows = json.loads((out / "predictions.json").read_text())
    assert [row["score"] for row in rows] == pytest.approx(list(expected.scores), abs=1e-4)
    assert len(rows) > 0
    assert len(expected) != len(plain.predict(picture, 0.1))
    assert main([*command, "--tta-scales", "[20]"]) == 2
    assert "tta_scales must be different" in capsys.readouterr().err

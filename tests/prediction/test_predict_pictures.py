"""Pictures in files to annotated pictures and predictions.json."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from deformable_detr import prediction
from deformable_detr.detector import Detector, new_checkpoint
from deformable_detr.errors import UserError
from deformable_detr.prediction import PREDICTIONS_FILE, find_images, predict
from deformable_detr.structures import ClassTable, Detections
from tiny import tiny_config


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(0)
    config = tiny_config()
    classes = ClassTable(("cat", "dog"), (7, 3))
    checkpoint = new_checkpoint(config.model, classes, config.data, config.recipe, None)
    with torch.no_grad():
        for parameter in checkpoint.model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return Detector.of(checkpoint, "cpu")


def write(path: Path, size: tuple[int, int] = (45, 70), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def test_annotated_pictures_and_rows_agree(detector: Detector, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    paths = [
        write(photos / "a.jpg"),
        write(photos / "deep" / "a.jpg", (20, 200)),
        write(photos / "b.PNG", mode="LA"),
        write(photos / "c.bmp", (70, 45)),
    ]
    (photos / "notes.txt").write_text("not a picture")
    out = tmp_path / "out"
    report = predict(detector, photos, out, threshold=0.0, max_detections=4, batch_size=3)

    assert {path.name for path in report.pictures} == {"a.jpg", "a_2.jpg", "b.png", "c.png"}
    assert report.predictions == out / PREDICTIONS_FILE
    assert not report.skipped
    assert {path.name for path in out.iterdir()} == {
        *(path.name for path in report.pictures),
        PREDICTIONS_FILE,
    }
    rows = json.loads(report.predictions.read_text())
    assert report.detections == len(rows) == 16
    assert list(rows[0]) == ["image_id", "category_id", "bbox", "score", "file_name", "category_name"]
    for number, path in enumerate(sorted(paths), start=1):
        mine = [row for row in rows if row["image_id"] == number]
        wanted = detector.predict(path, 0.0, max_detections=4)
        assert {row["file_name"] for row in mine} == {str(path)}
        np.testing.assert_allclose([row["score"] for row in mine], wanted.scores, atol=1e-5)
        assert [row["category_name"] for row in mine] == list(wanted.names)
        assert [row["category_id"] for row in mine] == wanted.category_ids.tolist()
        x, y, width, height = mine[0]["bbox"]
        np.testing.assert_allclose([x, y, x + width, y + height], wanted.boxes_xyxy[0], atol=0.02)
    with Image.open(out / "a_2.jpg") as drawn:
        assert drawn.size == (200, 20)


def test_nothing_found_is_an_empty_list_and_pictures_all_the_same(detector: Detector, tmp_path: Path) -> None:
    report = predict(detector, write(tmp_path / "a.png"), tmp_path / "out", threshold=1.0)
    assert json.loads(report.predictions.read_text()) == []
    assert report.detections == 0
    with Image.open(report.pictures[0]) as drawn, Image.open(tmp_path / "a.png") as original:
        np.testing.assert_array_equal(np.asarray(drawn), np.asarray(original))


def test_broken_pictures_are_skipped_and_reported(detector: Detector, tmp_path: Path) -> None:
    good = write(tmp_path / "in" / "good.png")
    (tmp_path / "in" / "bad.jpg").write_bytes(b"\xff\xd8\xff nonsense")
    cut = write(tmp_path / "in" / "cut.png")
    cut.write_bytes(cut.read_bytes()[:500])
    report = predict(detector, tmp_path / "in", tmp_path / "out")
    assert [path.name for path in report.pictures] == [good.name]
    assert {path.name for path, _ in report.skipped} == {"bad.jpg", "cut.png"}
    assert all(str(path) in reason for path, reason in report.skipped)


def test_no_readable_picture_at_all_is_an_error(detector: Detector, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"none of 1 images could be read; .*bad\.jpg"):
        predict(detector, tmp_path / "bad.jpg", tmp_path / "out")


def test_sources_may_be_files_folders_and_patterns(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.jpg"), write(tmp_path / "deep" / "b.webp")
    assert find_images([tmp_path]) == [a, b]
    assert find_images([tmp_path / "*.jpg"]) == [a]
    assert find_images([str(tmp_path / "**" / "*.webp")]) == [b]
    assert find_images([b, tmp_path]) == [b, a]
    odd = write(tmp_path / "[1].jpg")
    assert find_images([odd]) == [odd]


@pytest.mark.parametrize("source", ["nowhere.jpg", "*.nothing", "empty"])
def test_a_source_without_pictures_is_refused(tmp_path: Path, source: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no image there"):
        find_images([tmp_path / source])


def test_a_source_is_never_overwritten(detector: Detector, tmp_path: Path) -> None:
    photo = write(tmp_path / "a.jpg")
    before = photo.read_bytes()
    with pytest.raises(UserError, match=r"holds a\.jpg, which the annotated picture would replace"):
        predict(detector, photo, tmp_path)
    assert photo.read_bytes() == before
    link = tmp_path / "link"
    os.symlink(tmp_path, link)
    with pytest.raises(UserError, match="would replace"):
        predict(detector, photo, link)


def test_outputs_that_cannot_be_written(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = write(tmp_path / "a.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file: name a folder"):
        predict(detector, photo, tmp_path / "file")
    with pytest.raises(UserError, match="cannot be made"):
        predict(detector, photo, tmp_path / "file" / "out")
    # Tests may run as root, whom no permission stops.
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match="not yours to write in"):
        predict(detector, photo, tmp_path / "out")


def test_options_are_checked_before_any_work(detector: Detector, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="threshold"):
        predict(detector, write(tmp_path / "a.png"), tmp_path / "out", threshold=-0.1)
    assert not (tmp_path / "out").exists()


def test_batches_are_full_where_shapes_allow_and_bounded_where_not(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two shapes in turn, and one picture of every other shape."""
    monkeypatch.setattr(prediction, "WINDOW", 6)
    sizes = [(40, 60), (60, 40)] * 3 + [(40, 70 + 10 * i) for i in range(7)]
    for number, size in enumerate(sizes):
        write(tmp_path / "in" / f"{number:02}.png", size)
    batches: list[int] = []
    detect = detector.detect

    def counting(pixels: Any, *rest: Any, **options: Any) -> list[Detections]:
        batches.append(len(pixels))
        return detect(pixels, *rest, **options)

    monkeypatch.setattr(detector, "detect", counting)
    report = predict(detector, tmp_path / "in", tmp_path / "out", batch_size=3)
    assert batches == [3, 3, *[1] * 7]
    assert len(report.pictures) == 13


@pytest.mark.parametrize("culprit", ["read", "detect", "draw"])
def test_an_error_in_any_thread_ends_the_command(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, culprit: str
) -> None:
    for number in range(20):
        write(tmp_path / "in" / f"{number:02}.png")
    calls = []

    def failing(*_: Any, **__: Any) -> None:
        calls.append(1)
        raise ZeroDivisionError("a bug")

    if culprit == "read":
        monkeypatch.setattr(prediction, "read_picture", failing)
    elif culprit == "detect":
        monkeypatch.setattr(detector, "detect", failing)
    else:
        monkeypatch.setattr(Detections, "draw", failing)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        predict(detector, tmp_path / "in", tmp_path / "out", batch_size=1)
    assert len(calls) < 20
    assert not (tmp_path / "out" / PREDICTIONS_FILE).exists()


def test_reading_and_drawing_go_on_while_the_model_works(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model may start on a picture only when the next one is read and the one before is drawn: alone, it
    would wait for ever."""
    paths = [write(tmp_path / "in" / f"{number}.png") for number in range(4)]
    read = {path: threading.Event() for path in paths}
    drawn = [threading.Event() for _ in paths]
    read_picture, detect, draw = prediction.read_picture, detector.detect, Detections.draw
    detected: list[int] = []

    def reading(path: Path, max_pixels: int) -> Image.Image:
        picture = read_picture(path, max_pixels)
        read[path].set()
        return picture

    def detecting(*arguments: Any, **options: Any) -> list[Detections]:
        number = len(detected)
        detected.append(number)
        assert number == 0 or drawn[number - 1].wait(20)
        assert number == len(paths) - 1 or read[paths[number + 1]].wait(20)
        return detect(*arguments, **options)

    def drawing(detections: Detections) -> Image.Image:
        picture = draw(detections)
        next(event for event in drawn if not event.is_set()).set()
        return picture

    monkeypatch.setattr(prediction, "read_picture", reading)
    monkeypatch.setattr(detector, "detect", detecting)
    monkeypatch.setattr(Detections, "draw", drawing)
    assert len(predict(detector, tmp_path / "in", tmp_path / "out", batch_size=1).pictures) == 4

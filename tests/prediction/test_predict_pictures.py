"""Pictures in files to annotated pictures and predictions.json."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deformable_detr.detections import Detections
from deformable_detr.errors import PredictionInterrupted, UserError
from deformable_detr.inference.detector import Detector
from deformable_detr.prediction import (
    PREDICTION_REPORT_FILE,
    PREDICTIONS_FILE,
    pictures,
    predict,
)
from tests.support.scenes import SquareFinder, squares, write


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
        PREDICTION_REPORT_FILE,
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
    written = json.loads(report.report.read_text())
    assert written["skipped"] == [{"file_name": str(path), "reason": why} for path, why in report.skipped]
    assert [image["file_name"] for image in written["images"]] == [str(good)]
    assert isinstance(json.loads(report.predictions.read_text()), list)


def test_no_readable_picture_at_all_is_an_error(detector: Detector, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"none of 1 inputs could be read; .*bad\.jpg"):
        predict(detector, tmp_path / "bad.jpg", tmp_path / "deep" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.jpg"], "nothing is written"


def test_no_readable_picture_leaves_an_older_folder_as_it_was(detector: Detector, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"nonsense")
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="none of 1 inputs"):
        predict(detector, tmp_path / "bad.jpg", tmp_path / "out" / "new")
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(UserError, match="none of 1 inputs"):
        predict(detector, tmp_path / "bad.jpg", tmp_path / "out")
    assert (tmp_path / "out").is_dir()


def test_a_source_is_never_overwritten(detector: Detector, tmp_path: Path) -> None:
    photo = write(tmp_path / "a.jpg")
    before = photo.read_bytes()
    with pytest.raises(UserError, match=r"contains the source a\.jpg, which"):
        predict(detector, photo, tmp_path)
    assert photo.read_bytes() == before
    with pytest.raises(UserError, match=r"contains the source a\.jpg"):
        predict(detector, tmp_path / "*.jpg", tmp_path)
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
    with pytest.raises(UserError, match="cannot be created"):
        predict(detector, photo, tmp_path / "file" / "out")
    # Tests may run as root, whom no permission stops.
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match="no permission to write"):
        predict(detector, photo, tmp_path / "out")


def test_a_full_disk_leaves_no_half_of_a_picture(detector: Detector, tmp_path: Path) -> None:
    """Here: a limit for files. A JPEG is written in one piece, of which the system takes a part."""
    resource = pytest.importorskip("resource", reason="Windows has no such limits")
    photo = write(tmp_path / "a.jpg", (100, 100))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(UserError, match="cannot be written: the file is too large"):
            predict(detector, photo, tmp_path / "out", threshold=0.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list((tmp_path / "out").rglob("*.jpg"))


def test_options_are_checked_before_any_work(detector: Detector, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="threshold"):
        predict(detector, write(tmp_path / "a.png"), tmp_path / "out", threshold=-0.1)
    assert not (tmp_path / "out").exists()


def test_batches_are_full_if_shapes_allow_and_bounded_otherwise(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two shapes in turn, and one picture of every other shape."""
    monkeypatch.setattr(pictures, "WINDOW", 6)
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
        monkeypatch.setattr(pictures, "read_picture", failing)
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
    read_picture, detect, draw = pictures.read_picture, detector.detect, Detections.draw
    detected: list[int] = []

    def reading(path: Path, max_pixels: int) -> Image.Image:
        picture = read_picture(path, max_pixels)
        read[path].set()
        return picture

    def detecting(*arguments: Any, **options: Any) -> list[Detections]:
        number = len(detected)
        detected.append(number)
        assert number == 0 or drawn[number - 1].wait(100)
        assert number == len(paths) - 1 or read[paths[number + 1]].wait(100)
        return detect(*arguments, **options)

    def drawing(detections: Detections) -> Image.Image:
        picture = draw(detections)
        next(event for event in drawn if not event.is_set()).set()
        return picture

    monkeypatch.setattr(pictures, "read_picture", reading)
    monkeypatch.setattr(detector, "detect", detecting)
    monkeypatch.setattr(Detections, "draw", drawing)
    assert len(predict(detector, tmp_path / "in", tmp_path / "out", batch_size=1).pictures) == 4


def test_earlier_results_inside_the_folder_are_no_input(detector: Detector, tmp_path: Path) -> None:
    """The same command twice, then with another output, then on a pattern."""
    photos = tmp_path / "photos"
    write(photos / "a.png")
    write(photos / "more" / "b.png")
    for output in ("results", "results", "others"):
        report = predict(detector, photos, photos / output)
        assert {path.name for path in report.pictures} == {"a.png", "b.png"}, output
    assert report.left_out == (photos / "results",)
    assert json.loads(report.report.read_text())["left_out"] == [str(photos / "results")]
    report = predict(detector, str(photos / "**" / "*.png"), tmp_path / "out")
    assert len(report.pictures) == 2
    assert set(report.left_out) == {photos / "results", photos / "others"}
    with pytest.raises(UserError, match=r"no image or video there but results of an earlier predict"):
        predict(detector, str(photos / "results" / "*.png"), tmp_path / "out")
    assert len(predict(detector, photos / "results" / "a.png", tmp_path / "out").pictures) == 1


def test_a_folder_of_someone_elses_reports_is_input(detector: Detector, tmp_path: Path) -> None:
    write(tmp_path / "in" / "mine" / "a.png")
    for name, text in ((PREDICTION_REPORT_FILE, '{"made_by": "someone"}'), (PREDICTIONS_FILE, "[]")):
        (tmp_path / "in" / "mine" / name).write_text(text)
    assert len(predict(detector, tmp_path / "in", tmp_path / "out").pictures) == 1


def test_class_filters_and_thresholds_reach_files(tmp_path: Path) -> None:
    finder = SquareFinder()
    photo = tmp_path / "a.png"
    Image.fromarray(squares((160, 160), [(10, 10, 30, 30), (60, 60, 140, 140)])).save(photo)

    def scores(**options: Any) -> list[float]:
        report = predict(finder, photo, tmp_path / "out", **options)
        return [row["score"] for row in json.loads(report.predictions.read_text())]

    assert len(scores()) == 2
    assert scores(class_thresholds={"square": 0.8}) == [pytest.approx(0.9)]
    assert scores(threshold=1.0, class_thresholds={"square": 0.5}) == pytest.approx([0.9, 0.6])
    assert scores(classes=["other"]) == []
    with pytest.raises(UserError, match=r"has no class sqare: did you mean square\? It has square, other"):
        scores(classes=["sqare"])


def test_ctrl_c_keeps_what_was_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(8):
        Image.fromarray(squares((64, 64), [(8, 8, 40, 40)])).save(tmp_path / f"{number}.png")
    finder, calls = SquareFinder(), []
    detect = finder.detect

    def interrupted(*arguments: Any, **options: Any) -> list[Detections]:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return detect(*arguments, **options)

    monkeypatch.setattr(finder, "detect", interrupted)
    with pytest.raises(PredictionInterrupted) as interruption:
        predict(finder, tmp_path, tmp_path / "out", batch_size=1)
    report = interruption.value.report
    assert report.stopped
    assert [path.name for path in report.pictures] == ["0.png", "1.png", "2.png"]
    rows = json.loads(report.predictions.read_text())
    assert [row["image_id"] for row in rows] == [1, 2, 3]
    for path in report.pictures:
        with Image.open(path) as drawn:
            drawn.load()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("0.png", "1.png", "2.png"),
        *(PREDICTIONS_FILE, PREDICTION_REPORT_FILE),
    ]


def test_rows_come_in_the_order_of_pictures_whatever_their_shapes(tmp_path: Path) -> None:
    sizes = [(64, 64), (64, 96), (64, 64), (96, 64), (64, 96)]
    for number, size in enumerate(sizes):
        Image.fromarray(squares(size, [(8, 8, 40, 40)])).save(tmp_path / f"{number}.png")
    report = predict(SquareFinder(), tmp_path, tmp_path / "out", batch_size=2)
    rows = json.loads(report.predictions.read_text())
    assert [row["image_id"] for row in rows] == [1, 2, 3, 4, 5]
    assert [Path(row["file_name"]).stem for row in rows] == list("01234")
    assert [image.image_id for image in report.images] == [1, 2, 3, 4, 5]
    assert [image.size for image in report.images] == sizes

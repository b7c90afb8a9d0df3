"""Detections and class tables: selection, joining, conversion and drawing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deformable_detr.detections import ClassTable, Detections


def detections(n: int, size: tuple[int, int] = (60, 80), picture: bool = True) -> Detections:
    """n boxes that step to the right and down, scores falling from 0.9."""
    height, width = size
    corners = np.linspace(0.1, 0.5, n)[:, None] * (width, height)
    return Detections(
        boxes_xyxy=np.hstack([corners, corners + np.array([0.3 * width, 0.4 * height])]).astype(np.float32),
        scores=np.linspace(0.9, 0.3, n).astype(np.float32),
        labels=np.arange(n, dtype=np.int64) % 2,
        category_ids=np.array([7, 3], dtype=np.int64)[np.arange(n) % 2],
        names=tuple(("cat", "dog")[i % 2] for i in range(n)),
        image_size=size,
        image=np.full((*size, 3), 128, np.uint8) if picture else None,
    )


def test_class_tables() -> None:
    table = ClassTable((None, "car"), (0, 4))
    assert (table.name(1), table.name(0), len(table)) == ("car", "unused 0", 2)
    assert ClassTable.from_names(["a", "b"]).category_ids == (0, 1)
    with pytest.raises(ValueError, match="2 class names but 1 category ids"):
        ClassTable(("a", "b"), (1,))
    with pytest.raises(ValueError, match="differ"):
        ClassTable(("a", "b"), (1, 1))


def test_above_keeps_every_column_in_step() -> None:
    found = detections(4)
    some = found.above(0.5)
    assert len(some) == 3
    assert some.names == ("cat", "dog", "cat")
    np.testing.assert_array_equal(some.boxes_xyxy, found.boxes_xyxy[:3])
    assert some.image is found.image
    assert len(found.above(0.0)) == 4
    assert len(found.above(1.0)) == 0


def test_tracks_go_along_and_are_drawn() -> None:
    found = detections(3)
    tracked = replace(found, track_ids=np.array([5, -1, 7]))
    assert found.above(0.5).track_ids is None
    np.testing.assert_array_equal(tracked.above(0.5).track_ids, [5, -1])
    np.testing.assert_array_equal(tracked.take(np.array([2, 0])).track_ids, [7, 5])
    np.testing.assert_array_equal(tracked.to_supervision().tracker_id, [5, -1, 7])
    assert (np.asarray(tracked.draw()) != np.asarray(found.draw())).any()


def test_parts_are_joined_with_their_tracks() -> None:
    first, second = detections(3), detections(2)
    joined = Detections.concatenate([first, second])
    assert joined.track_ids is None
    assert joined.names == first.names + second.names
    np.testing.assert_array_equal(joined.boxes_xyxy, np.concatenate([first.boxes_xyxy, second.boxes_xyxy]))
    np.testing.assert_array_equal(joined.take(np.arange(3)).scores, first.scores)
    tracked = replace(first, track_ids=np.array([5, -1, 7]))
    both = Detections.concatenate([tracked, second])
    np.testing.assert_array_equal(both.track_ids, [5, -1, 7, -1, -1])


def test_coco_rows_are_plain_python() -> None:
    row = detections(2).to_coco(17)[0]
    assert row == {
        "image_id": 17,
        "category_id": 7,
        "bbox": pytest.approx([8, 6, 24, 24]),
        "score": pytest.approx(0.9),
    }
    assert [type(value) for value in (row["category_id"], row["score"], *row["bbox"])] == [int] + [float] * 5


@pytest.mark.parametrize("n", [0, 3])
def test_supervision_gets_the_same(n: int) -> None:
    found = detections(n)
    theirs = found.to_supervision()
    assert len(theirs) == n
    np.testing.assert_array_equal(theirs.xyxy, found.boxes_xyxy)
    np.testing.assert_array_equal(theirs.confidence, found.scores)
    np.testing.assert_array_equal(theirs.class_id, found.labels)
    assert list(theirs.data["class_name"]) == list(found.names)


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3), (60, 80), (430, 1764)])
@pytest.mark.parametrize("n", [0, 3])
def test_pictures_of_any_shape_are_drawn(size: tuple[int, int], n: int) -> None:
    found = detections(n, size)
    drawn = found.draw()
    assert (drawn.height, drawn.width, drawn.mode) == (*size, "RGB")
    assert found.image is not None
    assert (found.image == 128).all(), "the picture of the detections must stay as it was"
    assert (np.asarray(drawn) != 128).any() == (n > 0)


def test_the_picture_to_draw_on_may_be_given(tmp_path: Path) -> None:
    found = detections(1, picture=False)
    with pytest.raises(ValueError, match=r"pass one, draw\(image\)"):
        found.draw()
    picture = Image.new("RGB", (80, 60), (128, 128, 128))
    picture.save(tmp_path / "a.png")
    drawn = [
        np.asarray(found.draw(given))
        for given in (picture, np.asarray(picture), tmp_path / "a.png", str(tmp_path / "a.png"))
    ]
    for other in drawn[1:]:
        np.testing.assert_array_equal(drawn[0], other)
    assert picture.getcolors() == [(4800, (128, 128, 128))]
    np.testing.assert_array_equal(np.asarray(found.with_image(np.asarray(picture)).draw()), drawn[0])


def test_pictures_are_drawn_upright(tmp_path: Path) -> None:
    """A photograph that a camera stored on its side has boxes of the upright picture, as in `predict`."""
    sideways = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    exif = sideways.getexif()
    exif[0x0112] = 6  # a quarter turn
    sideways.save(tmp_path / "photograph.png", exif=exif)
    upright = np.asarray(sideways).transpose(1, 0, 2)[:, ::-1]
    found = detections(2, (60, 40), picture=False)
    expected = np.asarray(found.draw(upright))
    np.testing.assert_array_equal(np.asarray(found.draw(tmp_path / "photograph.png")), expected)
    with Image.open(tmp_path / "photograph.png") as opened:
        np.testing.assert_array_equal(np.asarray(found.draw(opened)), expected)


def test_a_label_on_a_small_picture_is_large_enough_to_be_read() -> None:
    """The demo's pictures have 160 x 120 pixels."""
    found = detections(1, (120, 160))
    changed = np.flatnonzero((np.asarray(found.draw()) != 128).any(-1).any(1))
    top, bottom = found.boxes_xyxy[0, [1, 3]]  # the label is above or below
    assert np.ptp(changed) - (bottom - top) >= 8


def test_detections_describe_themselves_in_a_line() -> None:
    assert repr(detections(3)) == "Detections(3 objects: 2 cat, 1 dog; 80x60)"
    assert repr(detections(1)) == "Detections(1 object: 1 cat; 80x60)"
    assert repr(detections(0)) == "Detections(no objects; 80x60)"
    evil = replace(detections(2), names=("a\x1b[2J\nb", "cat"))
    assert "\x1b" not in repr(evil)
    many = replace(detections(40), names=tuple(f"class {n}" for n in range(40)))
    assert "… and 32 more" in repr(many)


def test_a_notebook_shows_the_picture_and_a_table() -> None:
    evil = '<img src=x onerror="alert(1)">'
    shown = replace(detections(3), names=("cat", evil, "cat"))._repr_html_()
    assert shown.count('<img src="data:image/jpeg;base64,') == 1
    assert evil not in shown
    assert "&lt;img src=x" in shown
    assert shown.count("<tr>") == 4
    assert "<td>0.90</td><td>8.0</td><td>6.0</td>" in shown  # the score, and the box's first corner
    assert "<img" not in detections(3, picture=False)._repr_html_()
    assert "<table>" not in detections(0)._repr_html_()
    assert "and 10 more" in detections(30)._repr_html_()


def test_true_is_no_category_id() -> None:
    with pytest.raises(TypeError, match="a category id is not an integer of 64 bits"):
        ClassTable(("cat",), (True,))

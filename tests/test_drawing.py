"""Boxes and labels: inside the picture, readable, on top of each other only where there is no room."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from deformable_detr import drawing
from deformable_detr.drawing import PALETTE, draw_boxes

GREY = Image.new("RGB", (320, 240), (128, 128, 128))


def label_places(
    boxes: list[list[float]], labels: list[str], size: tuple[int, int] = (320, 240), text_size: int = 13
) -> np.ndarray:
    font = drawing.label_font(text_size)
    return drawing.label_positions(np.array(boxes).round().astype(int), labels, font, size)


def overlap(a: np.ndarray, b: np.ndarray) -> int:
    return int((np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])).clip(0).prod())


def test_a_box_is_where_it_should_be_in_its_colour() -> None:
    drawn = np.asarray(draw_boxes(GREY, np.array([[100, 100, 200, 180]]), ["a"], [3]))
    colour = np.array([int(PALETTE[3][i : i + 2], 16) for i in (1, 3, 5)])
    for y, x in ((150, 100), (150, 200), (100, 180), (180, 150)):
        assert (drawn[y, x] == colour).all(), (y, x)
    assert (drawn[110:170, 110:190] == 128).all(), "the inside stays"
    assert np.asarray(GREY).std() == 0, "the given picture stays"


@pytest.mark.parametrize("count", [2, 5, 10])
def test_labels_of_boxes_that_share_a_corner_can_all_be_read(count: int) -> None:
    boxes = [[60.0, 90.0, 120.0 + 10 * index, 150.0 + 8 * index] for index in range(count)]
    places = label_places(boxes, [f"class {index} 0.90" for index in range(count)])
    for first in range(count):
        for second in range(first):
            assert overlap(places[first], places[second]) == 0
    assert (places[:, :2] >= 0).all()
    assert (places[:, 2:] <= (320, 240)).all()


@pytest.mark.parametrize(
    "boxes",
    [
        [[100, 100, 118, 117], [100, 80, 118, 97]],
        [[302, 205, 318, 221], [304, 206, 320, 222]],
        [[0, 0, 18, 17]],
        [[0, 80, 200, 239], [60, 61, 78, 78]],
        [[x, y, x + 18, y + 17] for x in (40, 130, 220) for y in (60, 81, 102)],
    ],
)
def test_labels_leave_small_objects_in_sight(boxes: list[list[float]]) -> None:
    places = label_places(boxes, ["rectangle 0.90"] * len(boxes))
    for number, place in enumerate(places):
        assert all(overlap(place, np.array(box)) < 0.15 * 18 * 17 for box in boxes)
        assert all(overlap(place, other) == 0 for other in places[:number])


def test_a_label_covers_a_large_object_rather_than_hide_a_small_one() -> None:
    """Whose box has all but one place around it and on it taken."""
    small = [
        [20.0 + 25 * column, 2.0 + 19 * row, 40.0 + 25 * column, 19.0 + 19 * row]
        for column in range(12)
        for row in range(12)
        if row not in (5, 6)
    ]
    large = [0.0, 0.0, 320.0, 240.0]
    (place, *_) = label_places([large, *small], ["large 0.9", *[""] * len(small)])
    assert all(overlap(place, np.array(box)) < 0.5 * 20 * 17 for box in small)


@pytest.mark.parametrize(
    "box", [[0, 0, 50, 50], [300, 0, 320, 30], [0, 200, 320, 240], [-90, -90, 500, 500], [310, 230, 319, 239]]
)
def test_a_label_at_the_border_stays_inside(box: list[float]) -> None:
    (place,) = label_places([box], ["a long label 0.99"])
    assert (place[:2] >= 0).all()
    assert (place[2:] <= (320, 240)).all()


def test_the_best_stays_on_top_if_there_is_no_room() -> None:
    count = 60
    boxes = np.tile([[10.0, 10.0, 60.0, 40.0]], (count, 1))
    small = Image.new("RGB", (100, 60))
    drawn = draw_boxes(small, boxes, ["first", *["x" * 12] * (count - 1)], [0, *[1] * (count - 1)])
    (place,) = label_places([[10, 10, 60, 40]], ["first"], (100, 60), drawing.MIN_TEXT_SIZE)
    alone = draw_boxes(small, boxes[:1], ["first"], [0])
    assert drawn.crop(tuple(place)).tobytes() == alone.crop(tuple(place)).tobytes()


@pytest.mark.parametrize(
    "box",
    [[50, 50, 20, 20], [5, 5, 5, 5], [np.nan, 0, 10, 10], [-1e30, -1e30, 1e30, 1e30], [900, 900, 999, 999]],
)
def test_boxes_of_any_kind_are_drawn(box: list[float]) -> None:
    assert draw_boxes(GREY, np.array([box]), ["a"], [0]).size == GREY.size


def test_letters_beyond_ascii_are_drawn_as_such() -> None:
    font = drawing.label_font(20)
    missing = bytes(font.getmask("\uffff"))
    assert all(bytes(font.getmask(letter)) != missing for letter in "äßéčЖΩ")


def test_text_stands_out_from_its_background() -> None:
    assert drawing.text_colour("#ffe119") == "black"
    assert drawing.text_colour("#000075") == "white"


def test_drawing_imports_nothing_large() -> None:
    """What a cold start of `predict` would wait for."""
    code = (
        "import sys, numpy as np; from PIL import Image; from deformable_detr.drawing import draw_boxes;"
        "draw_boxes(Image.new('RGB', (9, 9)), np.zeros((1, 4)), ['a'], [0]);"
        "print([m for m in ('matplotlib', 'supervision', 'cv2', 'scipy', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

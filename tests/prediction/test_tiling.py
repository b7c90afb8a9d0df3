"""Tiles: cover everything, find what is small, say each object once."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deformable_detr.detections import Detections
from deformable_detr.errors import UserError
from deformable_detr.prediction import Tiling, predict, predict_tiled
from deformable_detr.prediction.tiling import is_cut, merge_parts
from tests.support.scenes import SquareFinder, squares

TILING = Tiling()


@given(st.integers(1, 400), st.integers(1, 400), st.integers(16, 400), st.floats(0, 0.5, allow_nan=False))
def test_tiles_cover_the_picture_and_overlap_enough(
    height: int, width: int, side: int, overlap: float
) -> None:
    levels = Tiling(side, overlap).levels((height, width), 100)
    assert levels[-1].tiles == ((0, 0, width, height),)
    assert levels[0].minimum == 0
    for number, level in enumerate(levels):
        tiles = np.array(level.tiles)
        assert len({(x1 - x0, y1 - y0) for x0, y0, x1, y1 in tiles}) == 1, "all of one size"
        for axis, length in ((0, width), (1, height)):
            starts, ends = np.unique(tiles[:, axis]), np.unique(tiles[:, axis + 2])
            assert starts[0] == 0
            assert ends[-1] == length
            assert ends[0] - starts[0] == min(side * 2**number, length)
            assert (ends[:-1] - starts[1:] >= level.reach).all()
    for closer, wider in pairwise(levels):
        assert wider.minimum == closer.reach, "no size is left out"


def test_a_tile_has_the_models_size_by_default() -> None:
    assert Tiling().levels((300, 300), 200) == Tiling(200).levels((300, 300), 999)
    numbers = [len(level.tiles) for level in Tiling(overlap=0.2).levels((3000, 4000), 320)]
    assert numbers == [16 * 12, 8 * 6, 4 * 3, 2 * 2, 1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 8}, "at least 16 pixels, not 8"),
        ({"overlap": 1.0}, "between 0 and 0.75, not 1.0"),
        ({"overlap": -0.1}, "between 0 and 0.75"),
    ],
)
def test_impossible_tiles_are_refused(options: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Tiling(**options)  # type: ignore[arg-type]


def scattered(size: tuple[int, int], side: int, count: int, seed: int = 0) -> list[tuple[int, int, int, int]]:
    """Squares that do not touch, anywhere in the picture."""
    boxes: list[tuple[int, int, int, int]] = []
    rng = np.random.default_rng(seed)
    while len(boxes) < count:
        x, y = int(rng.integers(0, size[1] - side)), int(rng.integers(0, size[0] - side))
        if all(abs(x - other[0]) > side + 4 or abs(y - other[1]) > side + 4 for other in boxes):
            boxes.append((x, y, x + side, y + side))
    return boxes


def assert_found_once(found: Detections, boxes: list[tuple[int, int, int, int]], tolerance: float) -> None:
    assert len(found) == len(boxes)
    mine, wanted = (np.array(sorted(map(tuple, rows))) for rows in (found.boxes_xyxy.round(), boxes))
    np.testing.assert_allclose(mine, wanted, atol=tolerance)


def test_small_objects_in_a_picture_of_12_megapixels_are_found(tmp_path: Path) -> None:
    """Squares of 14 pixels in 4000 x 3000, for a model that sees 160 pixels: 0.75 of one in the whole
    picture. Tile by tile each is found, once, where it is."""
    size = (3000, 4000)
    boxes = scattered(size, 14, 60)
    picture, finder = squares(size, boxes), SquareFinder()
    assert len(finder.predict(picture)) == 0
    found = predict_tiled(finder, picture)
    assert_found_once(found, boxes, 1)
    assert found.image is not None
    assert found.image_size == size
    assert (np.diff(found.scores) <= 0).all()
    Image.fromarray(picture).save(tmp_path / "large.png")
    report = predict(finder, tmp_path / "large.png", tmp_path / "out", tiling=TILING)
    assert report.detections == 60
    assert predict(finder, tmp_path / "large.png", tmp_path / "out").detections == 0


def test_large_objects_are_not_found_in_pieces() -> None:
    """One of 700 pixels over 30 tiles, small ones beside it, all whole."""
    boxes = [(150, 120, 850, 820), *((x, 900, x + 20, 920) for x in range(20, 1100, 97))]
    assert_found_once(predict_tiled(SquareFinder(), squares((1000, 1200), boxes)), boxes, 5)


@pytest.mark.parametrize("offset", range(0, 160, 7))
def test_an_object_on_the_border_of_tiles_is_found_once_and_whole(offset: int) -> None:
    box = (100 + offset, 80 + offset, 128 + offset, 108 + offset)
    assert_found_once(predict_tiled(SquareFinder(), squares((400, 400), [box])), [box], 1)


@pytest.mark.parametrize("side", [12, 30, 36, 60, 90, 150, 300, 500])
def test_objects_of_every_size_are_found_once(side: int) -> None:
    boxes = scattered((900, 1300), side, 3 if side < 200 else 1, seed=side)
    assert_found_once(predict_tiled(SquareFinder(), squares((900, 1300), boxes)), boxes, 4)


def test_a_picture_of_one_tile_is_as_without() -> None:
    picture, finder = squares((160, 160), [(10, 10, 40, 40)]), SquareFinder()
    found, plain = predict_tiled(finder, picture), finder.predict(picture)
    np.testing.assert_array_equal(found.boxes_xyxy, plain.boxes_xyxy)
    finder.seen.clear()
    predict_tiled(finder, picture)
    assert finder.seen == [(160, 160)]


def test_smaller_tiles_magnify() -> None:
    """4 pixels are too few for the model; in tiles of 80 they become 8."""
    picture, finder = squares((200, 200), [(50, 50, 54, 54)]), SquareFinder()
    assert len(predict_tiled(finder, picture)) == 0
    assert len(predict_tiled(finder, picture, tiling=Tiling(80))) == 1


def test_options_reach_the_tiles() -> None:
    picture = squares((400, 400), [(10, 10, 30, 30), (300, 300, 340, 340)])
    assert len(predict_tiled(SquareFinder(), picture, 0.65)) == 1
    assert len(predict_tiled(SquareFinder(), picture, classes=["other"])) == 0
    assert len(predict_tiled(SquareFinder(), picture, 1.0, class_thresholds={"square": 0.5})) == 2
    with pytest.raises(UserError, match="batch_size"):
        predict_tiled(SquareFinder(), picture, batch_size=0)


# ---------------------------------------------------------------- merging


def found_boxes(boxes: list[list[float]], scores: list[float], labels: list[int]) -> Detections:
    return Detections(
        boxes_xyxy=np.array(boxes, np.float32),
        scores=np.array(scores, np.float32),
        labels=np.array(labels),
        category_ids=np.array(labels),
        names=tuple("ab"[label] for label in labels),
        image_size=(100, 100),
    )


def test_a_part_goes_where_the_whole_is_known_however_well_it_scores() -> None:
    found = found_boxes([[0, 0, 40, 40], [0, 0, 20, 40]], [0.6, 0.9], [0, 0])
    merged = merge_parts(found, np.array([False, True]))
    assert merged.boxes_xyxy.tolist() == [[0, 0, 40, 40]]
    assert len(merge_parts(found, np.array([False, False]))) == 2, (
        "both whole, one inside the other: two objects"
    )


def test_classes_do_not_suppress_each_other() -> None:
    found = found_boxes([[0, 0, 40, 40], [0, 0, 40, 40], [0, 0, 20, 40]], [0.6, 0.9, 0.8], [0, 1, 1])
    assert merge_parts(found, np.array([False, False, False])).labels.tolist() == [1, 1, 0]
    assert merge_parts(found, np.array([False, True, False])).labels.tolist() == [1, 0]


def test_parts_that_overlap_become_one() -> None:
    found = found_boxes([[0, 0, 40, 20], [25, 0, 55, 20], [80, 0, 99, 9]], [0.7, 0.8, 0.6], [0, 0, 0])
    merged = merge_parts(found, np.array([True, True, True]))
    assert merged.boxes_xyxy.tolist() == [[0, 0, 55, 20], [80, 0, 99, 9]]
    np.testing.assert_allclose(merged.scores, [0.8, 0.6])


def test_a_box_is_cut_by_inner_borders_only() -> None:
    boxes = np.array([[0, 20, 30, 40], [40, 40, 99, 60], [20, 50, 40, 100], [30, 30, 60, 60]])
    assert is_cut(boxes, (0, 0, 100, 100), (150, 100), 2).tolist() == [False, False, True, False]
    assert is_cut(boxes, (0, 0, 100, 100), (100, 150), 2).tolist() == [False, True, False, False]

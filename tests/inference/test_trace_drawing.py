"""Figures: what is in them, found among matplotlib's objects."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from deformable_detr.detections import ClassTable
from deformable_detr.inference.detector import Detector
from deformable_detr.inference.loading import new_checkpoint
from deformable_detr.inference.trace_drawing import BOX_COLOUR, PROPOSAL_COLOUR, draw, grid, title, zoom
from tests.support.small_models import randomise
from tests.support.tiny import as_detr, tiny_config

PICTURE = np.random.default_rng(3).integers(0, 256, (64, 80, 3), dtype=np.uint8)


def detector(**changes: object) -> Detector:
    config = tiny_config()
    model = as_detr(config).model if changes.pop("detr", False) else tiny_config(**changes).model
    names = ClassTable.from_names(("a $b$ _c", "b"))
    checkpoint = new_checkpoint(model, names, config.data, "r", None)
    randomise(checkpoint.model)
    return Detector.of(checkpoint, "cpu")


def test_points_boxes_and_places() -> None:
    explanation = detector(queries="proposals").explain(PICTURE, 0.0, max_detections=5, at=[(10, 20)])
    figure = draw(explanation, layer=0, most=2)
    overview, first, second, *places, _bar = figure.axes
    assert len(places) == 3  # the levels of one place
    assert len(overview.patches) == 5
    for row, panel in enumerate((first, second)):
        (dots,) = [artist for artist in panel.collections if isinstance(artist, PathCollection)]
        expected = explanation.queries.attention.locations[row, 0].reshape(-1, 2)
        drawn = np.asarray(dots.get_offsets())
        np.testing.assert_allclose(np.sort(drawn, axis=0), np.sort(expected, axis=0))
        weights = np.asarray(dots.get_array())
        assert (np.diff(weights) >= 0).all()  # the heaviest is on top
        boxes = [patch for patch in panel.patches if isinstance(patch, Rectangle)]
        assert len(boxes) == 3  # the proposal and two layers
        x, y = boxes[-1].get_xy()
        box = [x, y, x + boxes[-1].get_width(), y + boxes[-1].get_height()]
        np.testing.assert_allclose(box, explanation.detections.boxes_xyxy[row], atol=1e-3)
        assert boxes[1].get_alpha() < boxes[2].get_alpha() == 1.0
        from matplotlib.colors import to_hex

        assert [to_hex(patch.get_edgecolor()) for patch in boxes] == [
            PROPOSAL_COLOUR,
            BOX_COLOUR,
            BOX_COLOUR,
        ]
    title = first.get_title(loc="left")
    assert title == f"1  {explanation.detections.names[0]} {explanation.detections.scores[0]:.2f}"


def test_maps_of_detr() -> None:
    explanation = detector(detr=True).explain(PICTURE, 0.0, max_detections=1)
    _, panel, _bar = draw(explanation).axes
    picture, shown = panel.images
    np.testing.assert_allclose(shown.get_array(), explanation.queries.attention.upsampled(0))
    assert picture.get_array().shape[:2] == (64, 80)


def test_nothing_detected() -> None:
    (panel,) = draw(detector().explain(PICTURE, 1.0)).axes
    assert panel.get_title(loc="left") == "0 detections"


@pytest.mark.parametrize(
    ("box", "view"),
    [
        ([40, 40, 60, 60], (30, 70, 40, 65)),  # as wide as it is needed for the height
        ([0, 0, 20, 20], (0, 40, 0, 25)),
        ([-50, -50, 250, 250], (0, 160, 0, 100)),
        ([150, 90, 151, 91], (140, 160, 87.5, 100)),  # no nearer than that
    ],
)
def test_zoom_keeps_the_shape_and_stays_inside(box: list[float], view: tuple[float, ...]) -> None:
    _, (panel,) = grid(1, (100, 160))
    zoom(panel, np.array(box, dtype=float), (100, 160))
    (x0, x1), (y1, y0) = panel.get_xlim(), panel.get_ylim()
    assert (x1 - x0) / (y1 - y0) == pytest.approx(1.6)
    assert -1e-9 <= x0 < x1 <= 160 + 1e-9
    assert -1e-9 <= y0 < y1 <= 100 + 1e-9
    assert x1 - x0 == pytest.approx(max(20, min(160, 2 * max(box[2] - box[0], 1.6 * (box[3] - box[1])))))
    assert x0 == pytest.approx(np.clip((box[0] + box[2]) / 2 - (x1 - x0) / 2, 0, 160 - (x1 - x0)))


@pytest.mark.parametrize(
    ("size", "right"),
    [
        ((80, 100), "query 64"),
        ((400, 80), "query 64"),
        ((80, 100), "attention 100%, IoU 0.085, score 0.003, best class triangle"),
        ((100, 75), "attention 100%, IoU 0.085, score 0.003, best class triangle"),
    ],
)
def test_the_two_sides_of_a_title_do_not_overlap(size: tuple[int, int], right: str) -> None:
    figure, (panel,) = grid(1, size)
    title(panel, "1  triangle 0.80", right)
    figure.canvas.draw()
    spans = {text.get_text(): text.get_window_extent() for text in panel.findobj(Text) if text.get_text()}
    frame = panel.get_window_extent()
    assert frame.x0 - 1 < spans["1  triangle 0.80"].x1 < spans[right].x0 < frame.x1


def test_panels_may_be_asked_to_be_wide() -> None:
    figure, panels = grid(2, (400, 300), columns=2, min_width=2.5)
    width, height = panels[0].get_position().size * figure.get_size_inches()
    assert width == pytest.approx(2.5)
    assert width / height == pytest.approx(0.75)


def test_panels_do_not_overlap() -> None:
    figure, panels = grid(7, (300, 100), legend_for=0.5)
    frames = [panel.get_position() for panel in [*panels, figure.axes[-1]]]
    for index, one in enumerate(frames):
        assert min(one.x0, one.y0) >= 0
        assert max(one.x1, one.y1) <= 1
        for other in frames[:index]:
            assert one.x1 <= other.x0 or other.x1 <= one.x0 or one.y1 <= other.y0 or other.y1 <= one.y0

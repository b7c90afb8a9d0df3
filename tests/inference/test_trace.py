"""Explanations: the arrays agree with what the detector predicts, in pixels of the original picture."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from deformable_detr.checkpoint import Decision
from deformable_detr.config import ModelConfig
from deformable_detr.detections import ClassTable
from deformable_detr.errors import UserError
from deformable_detr.inference.detector import Detector
from deformable_detr.inference.loading import new_checkpoint
from deformable_detr.inference.trace import AttentionMaps, SamplingPoints
from deformable_detr.structures import ImageBatch
from tests.support.matching import assert_same_detections
from tests.support.small_models import randomise
from tests.support.tiny import as_detr, tiny_config

NAMES = ClassTable(("circle", None, "star"), (1, 5, 7))  # the second logit is unused
SIZE = (90, 132)  # (H, W), resized to 64x93


def detector(classes: ClassTable = NAMES, **changes: object) -> Detector:
    config = tiny_config(**changes)
    return of_config(config.model, classes)


def of_config(model: ModelConfig, classes: ClassTable = NAMES) -> Detector:
    checkpoint = new_checkpoint(model, classes, tiny_config().data, "deformable_detr_lite", None)
    randomise(checkpoint.model)
    return Detector.of(checkpoint, "cpu")


def picture(size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


VARIANTS = {
    "refined": lambda: detector(),
    "plain": lambda: detector(refine_references=False),
    "two stages": lambda: detector(queries="proposals"),
    "mixed": lambda: detector(queries="mixed"),
    "two stages, as the authors": lambda: detector(queries="proposals", mask_invalid_proposals=False),
    "own level": lambda: detector(attention="deformable_own_level"),
    "one level": lambda: detector(num_levels=1),
    "detr": lambda: of_config(as_detr(tiny_config()).model),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_explanation_explains_what_is_predicted(variant: str) -> None:
    subject = VARIANTS[variant]()
    image = picture()
    explanation = subject.explain(image, 0.0)
    # predict's runner computes in another order
    assert_same_detections(explanation.detections, subject.predict(image, 0.0), score=1e-4, box=0.02)
    assert np.array_equal(explanation.detections.image, image)

    queries, N, T = explanation.queries, len(explanation), 2
    assert queries.boxes_xyxy.shape == (N, T, 4)
    last = queries.boxes_xyxy[:, -1].clip(0, np.tile(np.array(SIZE[::-1], np.float32), 2))
    assert np.array_equal(last, explanation.detections.boxes_xyxy)
    scores = queries.scores[np.arange(N), explanation.detections.labels]
    np.testing.assert_allclose(scores, explanation.detections.scores, atol=1e-6)
    assert (queries.scores[:, 1] == 0).all()
    assert (queries.indices < 10).all()


def test_boxes_after_each_layer_are_the_models() -> None:
    subject = VARIANTS["refined"]()
    explanation = subject.explain(picture(), 0.0)
    pixels = subject.preprocess(Image.fromarray(picture()))
    with torch.no_grad():
        output = subject.model(ImageBatch.from_images([pixels]))
    for layer, predictions in enumerate(output.predictions):
        x, y, w, h = predictions.boxes_cxcywh[0, explanation.queries.indices].numpy().T
        expected = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], axis=-1)
        expected *= np.array([SIZE[1], SIZE[0], SIZE[1], SIZE[0]])
        np.testing.assert_allclose(explanation.queries.boxes_xyxy[:, layer], expected, atol=1e-3)


def test_references_with_refinement_are_the_boxes_of_the_layer_before() -> None:
    first, second = VARIANTS["refined"]().explain(picture(), 0.0).queries.references
    assert first.shape[-1] == 2
    queries = VARIANTS["refined"]().explain(picture(), 0.0).queries
    np.testing.assert_allclose(second, queries.boxes_xyxy[:, 0], atol=1e-3)


def test_references_without_refinement_stay() -> None:
    subject = VARIANTS["plain"]()
    queries = subject.explain(picture(), 0.0).queries
    first, second = queries.references
    assert np.array_equal(first, second)
    positions = subject.model.queries.positions[queries.indices]
    fractions = subject.model.queries.reference_points(positions).sigmoid().detach().numpy()
    np.testing.assert_allclose(first, fractions * np.array(SIZE[::-1]), atol=1e-3)


@pytest.mark.parametrize("variant", ["two stages", "mixed", "two stages, as the authors"])
def test_proposals_are_where_the_first_layer_looks_and_name_their_token(variant: str) -> None:
    subject = VARIANTS[variant]()
    queries = subject.explain(picture(), 0.0).queries
    proposals = queries.proposals
    assert proposals is not None
    np.testing.assert_allclose(queries.references[0], proposals.boxes_xyxy, atol=1e-3)
    # objectness: one of the ten best of the first stage
    pixels = subject.preprocess(Image.fromarray(picture()))
    with torch.no_grad():
        stage = subject.model(ImageBatch.from_images([pixels])).proposals
    best = stage.logits[0, :, 0].sigmoid().sort(descending=True).values.numpy()
    for value in proposals.objectness:
        assert np.abs(best - value).min() < 1e-5
    assert set(proposals.levels) <= {0, 1, 2}
    assert ((proposals.centres > 0) & (proposals.centres < np.array(SIZE[::-1]))).all()


def test_points_lie_around_their_references_by_the_learned_offsets() -> None:
    """Offsets of a known number of cells: the cells of level l are stride_l pixels of the resized picture."""
    subject = detector(refine_references=False, decoder_layers=1)
    attention = subject.model.decoder.layers[0].cross_attention
    with torch.no_grad():
        attention.sampling_offsets.weight.zero_()
        attention.sampling_offsets.bias.copy_(torch.tensor([1.0, -2.0]).repeat(4 * 3 * 2))
    image = picture((128, 192))  # resized to 64x96: every level has whole cells
    queries = subject.explain(image, 0.0).queries
    points = queries.attention
    assert isinstance(points, SamplingPoints)
    assert points.locations.shape == (len(queries), 1, 4, 3, 2, 2)
    for level, stride in enumerate((8, 16, 32)):
        expected = queries.references[0] + 2 * stride * np.array(
            [1.0, -2.0]
        )  # the original is twice as large
        found = points.locations[:, 0, :, level]
        np.testing.assert_allclose(found, np.broadcast_to(expected[:, None, None], found.shape), atol=1e-3)


def test_the_encoder_at_chosen_places() -> None:
    subject = detector()
    image = picture((128, 192))
    encoder = subject.explain(image, 0.9, at=[(50.0, 70.0), (192.0, 128.0)]).encoder
    assert encoder is not None
    # in the original: cells of 16, 32 and 64 pixels
    assert encoder.centres.tolist() == [
        [[56, 72], [48, 80], [32, 96]],
        [[184, 120], [176, 112], [160, 96]],
    ]
    assert encoder.attention.weights.shape == (6, 1, 4, 3, 2)
    assert subject.explain(image, 0.9).encoder is None
    with pytest.raises(UserError, match=r"200,5 is outside the picture, which has 192x128"):
        subject.explain(image, at=[(200, 5)])


def test_a_model_without_encoder_is_refused() -> None:
    with pytest.raises(UserError, match="no encoder layers"):
        detector(encoder_layers=0).explain(picture(), at=[(1, 1)])


def test_detr_has_maps_instead_of_points() -> None:
    subject = VARIANTS["detr"]()
    explanation = subject.explain(picture(), 0.05, at=[(10, 10)])
    maps = explanation.queries.attention
    assert isinstance(maps, AttentionMaps)
    assert maps.weights.shape == (len(explanation), 2, 4, 2, 3)
    np.testing.assert_allclose(maps.weights.sum((-2, -1)), 1, atol=1e-5)
    assert explanation.queries.references == ()
    assert explanation.queries.proposals is None
    assert explanation.encoder is not None
    assert isinstance(explanation.encoder.attention, AttentionMaps)
    assert maps.upsampled(0).shape == SIZE
    assert 0 <= maps.upsampled(0, 1, 2).max() <= maps.weights[0, 1, 2].max() + 1e-6


def test_options_out_of_range() -> None:
    subject = detector()
    with pytest.raises(UserError, match="threshold"):
        subject.explain(picture(), 1.5)
    with pytest.raises(UserError, match="max_detections"):
        subject.explain(picture(), max_detections=0)
    assert len(subject.explain(picture(), 1.0)) == 0


# ---------------------------------------------------------------- the share of the weight inside a box


def test_the_share_of_points_inside_a_box() -> None:
    locations = np.zeros((2, 1, 2, 1, 2, 2))
    locations[0, 0, 0, 0] = [[5, 5], [50, 5]]  # one head: in, out
    locations[0, 0, 1, 0] = [[10, 10], [0, 10.1]]  # the other: on the edge, out
    locations[1] = 100
    weights = np.tile([[0.7, 0.3]], (2, 1, 2, 1, 1)).astype(float)
    points = SamplingPoints(locations, weights)
    np.testing.assert_allclose(points.share_inside(np.array([0, 0, 10, 10])), [[0.7], [0.0]])
    each = np.array([[0, 0, 60, 10], [99, 99, 101, 101]])
    np.testing.assert_allclose(points.share_inside(each), [[(1.0 + 0.7) / 2], [1.0]])
    assert points.take(np.array([1, 1, 0])).share_inside(np.array([0, 0, 10, 10])).tolist() == [
        [0.0],
        [0.0],
        pytest.approx([0.7]),
    ]


def test_the_share_of_a_map_inside_a_box_counts_touched_cells() -> None:
    cells = np.zeros((1, 1, 2, 2, 3))
    cells[0, 0, 0, 0] = [0.5, 0.25, 0.25]
    cells[0, 0, 1, 1, 2] = 1.0
    maps = AttentionMaps(cells, (20, 30))  # cells of 10x10
    assert maps.share_inside(np.array([0, 0, 10, 10]))[0, 0] == pytest.approx(0.25)
    assert maps.share_inside(np.array([11, 1, 12, 2]))[0, 0] == pytest.approx(0.125)
    assert maps.share_inside(np.array([29, 9, 30, 11]))[0, 0] == pytest.approx(0.625)
    assert maps.share_inside(np.array([0, 0, 30, 20]))[0, 0] == pytest.approx(1.0)
    assert replace(maps).take(np.array([0, 0])).weights.shape[0] == 2


def test_an_explanation_shows_itself() -> None:
    explanation = detector().explain(picture(), 0.0, max_detections=2)
    assert repr(explanation).startswith("Explanation(2 objects: ")
    assert "2 decoder layers" in repr(explanation)
    assert "\n" not in repr(explanation)
    figure = explanation.draw(layer=0, most=1)
    assert len(figure.axes) == 3  # the picture, a detection, and the colours
    shown = Image.open(BytesIO(explanation._repr_png_()))
    assert shown.format == "PNG"
    assert min(shown.size) > 100


def test_an_explanation_selects_by_class() -> None:
    subject = detector()
    everything = subject.explain(picture(), 0.0)
    scores, names = everything.detections.scores, np.array(everything.detections.names)
    limit = np.float32(np.median(scores))
    decision = Decision((float(limit), 0.5, 1.0), ("own",) * 3, "best_f1", "val", 1)
    subject = Detector.of(replace(subject.checkpoint, decision=decision), "cpu")
    found = subject.explain(picture())
    kept = (scores >= limit) & (names == NAMES.names[0])
    assert 0 < kept.sum() < len(everything)
    np.testing.assert_array_equal(found.detections.scores, scores[kept])
    np.testing.assert_array_equal(found.queries.indices, everything.queries.indices[kept])

"""Gradients of a prediction with respect to the picture, against differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from deformable_detr.config import RunConfig
from deformable_detr.detections import ClassTable
from deformable_detr.explain.gradient import TERMS, draw_gradients, gradients, terms_of
from deformable_detr.inference.detector import Detector
from deformable_detr.inference.loading import new_checkpoint
from deformable_detr.inference.tta import augmented
from tests.support.small_models import randomise
from tests.support.tiny import as_detr, tiny_config


def detector(config: RunConfig) -> Detector:
    checkpoint = new_checkpoint(config.model, ClassTable.from_names(("a", "b")), config.data, "r", None)
    randomise(checkpoint.model)
    return Detector.of(checkpoint, "cpu")


PICTURE = np.random.default_rng(3).integers(0, 256, (64, 80, 3), dtype=np.uint8)


# Not with refinement: no gradient passes from layer to layer there, whereas a difference does.
PLAIN = {"deformable": tiny_config(refine_references=False), "dense": as_detr(tiny_config())}


@pytest.mark.parametrize("config", PLAIN.values(), ids=PLAIN)
def test_norms_agree_with_differences(config: RunConfig) -> None:
    subject = detector(config)
    result = gradients(subject, PICTURE, 0.05, max_detections=1)
    assert result.norms.shape == (1, 5, 64, 80)
    explanation = subject.explain(PICTURE, 0.05, max_detections=1)
    query, label = int(explanation.queries.indices[0]), int(explanation.detections.labels[0])
    pixels = subject.preprocess(Image.fromarray(PICTURE))
    for number in range(len(TERMS)):
        norms = result.norms[0, number]
        y, x = np.unravel_index(norms.argmax(), norms.shape)
        differences = []
        for colour in range(3):
            step = 0.02
            values = []
            for sign in (1, -1):
                moved = pixels.clone()
                moved[colour, y, x] += sign * step
                with torch.no_grad():
                    values.append(float(terms_of(subject, moved, query, label)[number]))
            differences.append((values[0] - values[1]) / (2 * step))
        assert np.linalg.norm(differences) == pytest.approx(norms[y, x], rel=0.05, abs=5e-6)


def test_the_model_is_left_as_it_was() -> None:
    subject = detector(tiny_config())
    subject.model.train()
    gradients(subject, PICTURE, 0.05, max_detections=1)
    assert subject.model.training
    assert all(parameter.grad is None for parameter in subject.model.parameters())


def test_gradients_are_those_of_the_plain_model() -> None:
    subject = detector(tiny_config())
    norms = [gradients(one, PICTURE, 0.05, max_detections=1).norms for one in (subject, augmented(subject))]
    np.testing.assert_array_equal(*norms)


def test_the_figure_has_five_panels_for_each_detection() -> None:
    subject = detector(tiny_config())
    result = gradients(subject, PICTURE, 0.0, max_detections=2)
    figure = draw_gradients(result)
    assert len(figure.axes) == 10
    assert [panel.get_title(loc="left").split(": ")[-1] for panel in figure.axes[:5]] == list(TERMS)


def test_nothing_detected() -> None:
    result = gradients(detector(tiny_config()), PICTURE, 1.0)
    assert result.norms.shape == (0, 5, 64, 80)
    assert len(result.detections) == 0

"""Drift: what is compared with what, and what is said of it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from deformable_detr.detections import ClassTable
from deformable_detr.exporter.certificate import FLOAT32, INT8, CheckedPicture, complaints, measure
from deformable_detr.inference.backend import Backend
from deformable_detr.inference.detector import Detector
from deformable_detr.structures import ImageBatch, Predictions
from tests.support.small_models import random_checkpoint
from tests.support.tiny import tiny_config


class Canned(Backend):
    """The same answer for every picture, moved by `logit` and `box` at one query, or in another order."""

    def __init__(
        self, logit: float = 0.0, box: float = 0.0, query: int = 0, order: list[int] | None = None
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        self.logits = torch.randn(1, 6, 2, generator=generator) * 2 - 3
        self.logits[0, 1, 0] = 2.0  # the only confident query
        self.boxes = torch.rand(1, 6, 4, generator=generator)
        self.logits[0, query] += logit
        self.boxes[0, query, 2] += box
        self.order = order or list(range(6))
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, batch: ImageBatch) -> Predictions:
        self.seen.append(tuple(batch.pixels.shape))
        B = len(batch)
        return Predictions(
            self.logits[:, self.order].expand(B, -1, -1), self.boxes[:, self.order].expand(B, -1, -1)
        )


def picture(name: str, height: int, width: int) -> CheckedPicture:
    return CheckedPicture(name, "0" * 64, (height, width), (height, width), torch.zeros(3, height, width))


PICTURES = [picture("a", 32, 40), picture("b", 32, 40), picture("c", 40, 32)]


@pytest.fixture(scope="module")
def detector() -> Detector:
    config = tiny_config(num_classes=2, num_queries=6)
    checkpoint = random_checkpoint(config.model, ClassTable.from_names(("x", "y")))
    return Detector.of(replace(checkpoint, data=config.data), "cpu")


def test_each_picture_alone_and_two_padded(detector: Detector) -> None:
    exported = Canned()
    drift, shapes = measure(detector, exported, Canned(), PICTURES)
    assert shapes == [(1, 32, 40), (1, 32, 40), (1, 40, 32), (2, 32, 40)]
    assert exported.seen == [(B, 3, H, W) for B, H, W in shapes]
    assert (drift.logit, drift.score, drift.box, drift.confident_box) == (0, 0, 0, 0)
    assert complaints(drift, (0.5, 0.5), FLOAT32, "fp32") == []


def test_each_output_is_named_with_its_drift(detector: Detector) -> None:
    drift, _ = measure(detector, Canned(box=0.25), Canned(), PICTURES)
    assert drift.box == pytest.approx(0.25)
    assert complaints(drift, None, FLOAT32, "fp32") == [
        "boxes drifted by 0.25 of the picture's side (a), 0.001 allowed"
    ]
    drift, _ = measure(detector, Canned(logit=-3.0, query=1), Canned(), PICTURES)
    assert drift.logit == pytest.approx(3.0)
    assert drift.score == pytest.approx(1 / (1 + math.exp(-2)) - 1 / (1 + math.exp(1)), abs=1e-6)
    assert complaints(drift, None, FLOAT32, "fp32") == ["scores drifted by 0.61 (a), 0.001 allowed"]
    same, _ = measure(detector, Canned(), Canned(), PICTURES)
    assert complaints(same, (0.5, 0.4), FLOAT32, "fp32") == [
        "AP fell from 0.5000 to 0.4000, by more than 0.001"
    ]
    assert complaints(same, (0.4, 0.5), FLOAT32, "fp32") == []


def test_what_is_not_a_number_is_over_any_bound(detector: Detector) -> None:
    drift, _ = measure(detector, Canned(logit=float("nan"), box=float("nan")), Canned(), PICTURES)
    assert len(complaints(drift, None, replace(FLOAT32, box=1e9, score=1e9), "fp32")) == 2


def test_what_is_not_a_number_is_not_forgotten(detector: Detector) -> None:
    """Only the first picture's output is not a number; those of later pictures are equal."""

    class Once(Canned):
        def __call__(self, batch: ImageBatch) -> Predictions:
            found = super().__call__(batch)
            return replace(found, logits=found.logits * float("nan")) if len(self.seen) == 1 else found

    drift, _ = measure(detector, Once(), Canned(), PICTURES)
    assert math.isnan(drift.logit)
    assert drift.worst["logit"] == "a"
    assert len(complaints(drift, None, FLOAT32, "fp32")) == 1


def test_int8_looks_at_the_boxes_of_confident_queries(detector: Detector) -> None:
    unsure = int(Canned().logits[0].amax(-1).argmin())
    drift, _ = measure(detector, Canned(box=0.25, query=unsure), Canned(), PICTURES)
    assert drift.box == pytest.approx(0.25)
    assert drift.confident_box == 0
    assert complaints(drift, None, INT8, "int8") == []
    drift, _ = measure(detector, Canned(box=0.25, query=1), Canned(), PICTURES)
    assert len(complaints(drift, None, INT8, "int8")) == 1


def test_proposals_may_come_in_another_order(detector: Detector) -> None:
    swapped = Canned(order=[2, 0, 1, 5, 4, 3])
    drift, _ = measure(detector, swapped, Canned(), PICTURES)
    assert drift.box > 0.01  # one-stage queries are who they are
    detector.config = replace(
        detector.config, queries="proposals", classification="sigmoid_focal", refine_references=True
    )
    drift, _ = measure(detector, swapped, Canned(), PICTURES)
    assert (drift.logit, drift.box) == (0, 0)

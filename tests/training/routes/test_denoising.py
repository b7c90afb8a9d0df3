"""Contrastive denoising: its queries, its noise, its mask and its losses (specification §12.6)."""

from __future__ import annotations

import pytest
import torch

from deformable_detr.boxes import cxcywh_to_xyxy, iou
from deformable_detr.classification import build_classification
from deformable_detr.loss import SetCriterion
from deformable_detr.models import build_model
from deformable_detr.models.decoder import DecoderLayer
from deformable_detr.structures import DetectorOutput, ImageBatch, Target
from deformable_detr.training.routes import denoising
from deformable_detr.training.routes.denoising import (
    Denoising,
    Slots,
    attend_within_groups,
    noisy_boxes,
    noisy_labels,
)
from tests.support.small_models import randomise
from tests.support.tiny import routed_config

CONFIG = routed_config(dropout=0.0)
IMAGES = ImageBatch.from_images([torch.randn(3, 64, 80), torch.randn(3, 48, 96), torch.randn(3, 64, 64)])
BOXES = torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.3, 0.7, 0.1, 0.1], [0.6, 0.2, 0.3, 0.2]])
TARGETS = [
    Target(torch.tensor([3]), BOXES[:1]),
    Target(torch.tensor([], dtype=torch.int64), torch.zeros(0, 4)),
    Target(torch.tensor([1, 2]), BOXES[1:]),
]


def test_slots_hold_the_objects_of_their_image_in_every_group() -> None:
    slots = Slots.of([1, 0, 2], num_queries=6)
    assert slots.num_groups == 3
    assert slots.empty.tolist() == [[False, True] * 2, [True] * 4, [False] * 4]
    labels, boxes = slots.filled(TARGETS)
    assert labels.shape == (3, 3, 2, 2)
    assert len(slots.rows) == 3 * 2 * 3  # groups, little and more noise, objects
    objects = torch.cat([target.boxes_cxcywh for target in TARGETS])
    classes = torch.cat([target.labels for target in TARGETS])
    restoring = slots.rows[slots.restoring]
    assert torch.equal(boxes.flatten(0, 3)[restoring], objects[slots.objects])
    assert torch.equal(labels.flatten()[restoring], classes[slots.objects])
    assert torch.bincount(slots.objects).tolist() == [3, 3, 3]
    halves = torch.arange(2)[:, None].expand(3, 3, 2, 2).flatten()
    assert not halves[restoring].any()


def test_images_with_more_objects_than_queries_have_one_group() -> None:
    slots = Slots.of([313, 2], num_queries=100)
    assert slots.num_groups == 1
    assert len(slots.restoring) == 315
    assert Slots.of([0, 0], num_queries=100).rows.tolist() == []


def test_noise_moves_corners_by_half_a_side_or_up_to_a_whole_one() -> None:
    torch.manual_seed(0)
    boxes = torch.tensor([0.5, 0.5, 0.2, 0.1]).expand(1, 500, 2, 1, 4)
    moved = noisy_boxes(boxes)
    shift = (cxcywh_to_xyxy(moved) - cxcywh_to_xyxy(boxes)).abs()[0, :, :, 0] / torch.tensor(
        [0.2, 0.1, 0.2, 0.1]
    )
    little, more = shift[:, 0], shift[:, 1]
    assert little.max() <= 0.5 + 1e-5
    assert little.max() > 0.45
    # Sides that passed each other are exchanged, so only boxes that grew show how far a corner moved.
    assert more.max() <= 1.0 + 1e-5
    assert more.max() > 0.95
    overlap = iou(cxcywh_to_xyxy(moved), cxcywh_to_xyxy(boxes))[0, :, :, 0].mean(0)
    assert overlap[0] > 2 * overlap[1]
    assert (moved[..., 2:] >= 0).all()
    assert (cxcywh_to_xyxy(noisy_boxes(boxes * 4)) - 0.5).abs().max() <= 0.5 + 1e-6


def test_a_quarter_of_the_labels_is_drawn_anew() -> None:
    torch.manual_seed(0)
    labels = torch.full((4000,), 2)
    assert (noisy_labels(labels, 10) != 2).float().mean().item() == pytest.approx(0.25 * 0.9, abs=0.03)


def test_queries_see_their_own_group_and_no_empty_slot() -> None:
    torch.manual_seed(0)
    layer = DecoderLayer(torch.nn.Identity(), 32, 4, 48, 0.0)  # type: ignore[arg-type]
    slots = Slots.of([1, 0, 2], num_queries=4)  # two groups of 2 x 2 slots
    content, positions = torch.randn(3, 8, 32), torch.randn(3, 8, 32)
    before = attend_within_groups(layer, slots, content, positions)
    assert before.isfinite().all()

    changed = content.clone()
    changed[:, 0] += 1.0  # the first slot of the first group
    after = attend_within_groups(layer, slots, changed, positions)
    assert torch.equal(after[:, 4:], before[:, 4:])
    assert not torch.allclose(after[0, 2], before[0, 2])

    changed = content.clone()
    changed[0, 1] += 1.0  # an empty slot
    after = attend_within_groups(layer, slots, changed, positions)
    assert torch.equal(after[0, [0, 2, 3]], before[0, [0, 2, 3]])


def stages_without_noise(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.setattr(denoising, "BOX_NOISE", 0.0)
    monkeypatch.setattr(denoising, "LABEL_NOISE", 0.0)
    torch.manual_seed(0)
    model = build_model(CONFIG.model).eval()  # a new model's boxes are its references
    route = Denoising(CONFIG.model.num_classes, 32, num_queries=4)
    memory = model.remember(IMAGES)
    return model, route(model, memory, model.queries(memory), TARGETS)


def test_without_noise_a_decoder_that_keeps_its_references_has_no_box_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, stages = stages_without_noise(monkeypatch)
    criterion = SetCriterion(build_classification(CONFIG.model), CONFIG.train.loss)
    losses = criterion(DetectorOutput(model(IMAGES).predictions), TARGETS, None, stages)
    for layer in ("", "_0"):
        assert losses.terms[f"box_denoising{layer}"].item() == pytest.approx(0.0, abs=1e-5)
        assert losses.terms[f"giou_denoising{layer}"].item() == pytest.approx(0.0, abs=1e-4)
        assert losses.terms[f"class_denoising{layer}"] > 0
    assert {stage.repeats for stage in stages} == {2}


def test_a_batch_without_objects_touches_every_parameter_and_teaches_nothing() -> None:
    """Otherwise, a process without objects would wait for gradients for ever."""
    torch.manual_seed(0)
    model = build_model(CONFIG.model)
    randomise(model)
    route = Denoising(CONFIG.model.num_classes, 32, num_queries=4)
    memory = model.remember(IMAGES)
    empty = [TARGETS[1]] * 3
    stages = route(model, memory, model.queries(memory), empty)
    criterion = SetCriterion(build_classification(CONFIG.model), CONFIG.train.loss)
    losses = criterion(DetectorOutput(model(IMAGES).predictions), empty, None, stages)
    assert losses.terms["class_denoising"] == losses.terms["box_denoising"] == 0.0
    losses.total.backward()
    assert route.labels.weight.grad is not None
    assert not route.labels.weight.grad.any()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_noise_follows_from_the_seed() -> None:
    torch.manual_seed(0)
    model = build_model(CONFIG.model).eval()
    route = Denoising(CONFIG.model.num_classes, 32, num_queries=4)
    memory = model.remember(IMAGES)
    queries = model.queries(memory)
    results = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        results.append(route(model, memory, queries, TARGETS)[0].predictions.boxes_cxcywh)
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])

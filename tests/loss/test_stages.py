"""The criterion as a list of stages: names, weights and divisors of losses."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from deformable_detr.classification import SigmoidFocal
from deformable_detr.config import LossConfig
from deformable_detr.loss import HungarianMatcher, QualityAssigner, SetCriterion, objects_only, stages_of
from deformable_detr.structures import BatchCount, DetectorOutput, Predictions, Target

FOCAL = SigmoidFocal(3)
MATCHER = HungarianMatcher(FOCAL, 2, 5, 2)
TARGETS = [
    Target(torch.tensor([1, 2]), torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.2, 0.3, 0.1, 0.2]]), "a"),
    Target(torch.tensor([], dtype=torch.int64), torch.zeros(0, 4), "b"),
]


def layers(number: int = 3) -> tuple[Predictions, ...]:
    torch.manual_seed(0)
    return tuple(
        Predictions(
            torch.randn(2, 8, 3, requires_grad=True), (torch.rand(2, 8, 4) * 0.5 + 0.2).requires_grad_()
        )
        for _ in range(number)
    )


def test_further_stages_have_names_and_weights() -> None:
    output, criterion = DetectorOutput(layers()), SetCriterion(FOCAL, LossConfig())
    alone = criterion(output, TARGETS)
    further = stages_of(layers(), TARGETS, MATCHER, name="_route", weight=0.5)
    both = criterion(output, TARGETS, None, further)
    assert set(both.terms) - set(alone.terms) == {
        f"{term}_route{layer}" for term in ("class", "box", "giou") for layer in ("", "_0", "_1")
    }
    for name, value in alone.terms.items():
        assert torch.equal(both.terms[name], value)
        term, _, layer = name.partition("_")
        assert torch.equal(both.terms[f"{term}_route{layer and '_' + layer}"], value)
    torch.testing.assert_close(both.total, 1.5 * alone.total)


def test_a_weight_of_zero_changes_neither_the_loss_nor_its_gradient() -> None:
    own, criterion = layers(), SetCriterion(FOCAL, LossConfig())
    tensors = [tensor for layer in own for tensor in (layer.logits, layer.boxes_cxcywh)]
    further = stages_of(own, TARGETS, QualityAssigner(FOCAL), name="_route", weight=0.0)
    alone = criterion(DetectorOutput(own), TARGETS).total
    both = criterion(DetectorOutput(own), TARGETS, None, further).total
    assert torch.equal(alone, both)
    for one, other in zip(
        torch.autograd.grad(alone, tensors), torch.autograd.grad(both, tensors), strict=True
    ):
        assert torch.equal(one, other)


def test_losses_of_repeated_objects_are_divided_by_their_number() -> None:
    """Two equal queries for one object, counted twice, are one query for one object."""
    one = layers(1)[0]
    twice = Predictions(*(torch.cat([tensor] * 2, dim=1) for tensor in (one.logits, one.boxes_cxcywh)))
    alone = SetCriterion(FOCAL, LossConfig())(DetectorOutput((one,)), TARGETS)
    repeated = SetCriterion(FOCAL, LossConfig(object_repeats=2))(DetectorOutput((twice,)), TARGETS)
    for name, value in alone.terms.items():
        torch.testing.assert_close(repeated.terms[name], value)


def test_without_auxiliary_losses_a_route_has_its_last_layer() -> None:
    stages = stages_of(layers(), TARGETS, MATCHER, name="_route", auxiliary=False)
    assert [stage.suffix for stage in stages] == ["_route"]


def test_the_first_stage_knows_objects_only() -> None:
    objects = objects_only(TARGETS)
    assert [target.labels.tolist() for target in objects] == [[0, 0], []]
    assert [target.image_id for target in objects] == ["a", "b"]
    assert objects[0].boxes_cxcywh is TARGETS[0].boxes_cxcywh


def test_the_quality_of_a_pair_is_the_overlap_of_its_boxes() -> None:
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.9, 0.1, 0.1, 0.1], [0.3, 0.3, 0.1, 0.1]]])
    prediction = Predictions(torch.zeros(1, 3, 3), boxes.requires_grad_())
    target = replace(TARGETS[0], boxes_cxcywh=torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.95, 0.1, 0.1, 0.1]]))
    seen: list[Tensor] = []

    class Watched(SigmoidFocal):
        def loss(self, logits: Tensor, assigned: Tensor, quality: Tensor, count: BatchCount) -> Tensor:
            seen.append(quality)
            return logits.sum()

    SetCriterion(Watched(3), LossConfig())(DetectorOutput((prediction,)), [target])
    torch.testing.assert_close(seen[0], torch.tensor([[1.0, 1 / 3, 0.0]]))
    assert not seen[0].requires_grad

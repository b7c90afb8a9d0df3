"""Classification: cost, loss, score and selection of one scheme agree with plain formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from deformable_detr.classification import (
    NO_OBJECT,
    ClassificationScheme,
    SigmoidFocal,
    SigmoidMatchability,
    SigmoidVarifocal,
    SoftmaxWithNoObject,
    build_classification,
    select_from_arrays,
)
from deformable_detr.config import LossConfig, ModelConfig
from deformable_detr.structures import BatchCount


def test_focal_loss_and_cost_by_the_formula() -> None:
    torch.manual_seed(0)
    scheme = SigmoidFocal(num_classes=3)
    logits = torch.randn(2, 4, 3, dtype=torch.float64)
    assigned = torch.tensor([[0, NO_OBJECT, 2, NO_OBJECT], [NO_OBJECT] * 4])
    expected = 0.0
    for b in range(2):
        for q in range(4):
            for c in range(3):
                p = 1 / (1 + math.exp(-logits[b, q, c]))
                if assigned[b, q] == c:
                    expected += 0.25 * (1 - p) ** 2 * -math.log(p)
                else:
                    expected += 0.75 * p**2 * -math.log(1 - p)
    count = BatchCount(objects=2, matched=2, images=2)
    assert scheme.loss(logits, assigned, torch.zeros(2, 4), count).item() == pytest.approx(expected / 2)

    cost = scheme.matching_cost(logits[0], torch.tensor([2, 0]))
    p = 1 / (1 + math.exp(-logits[0, 1, 2]))
    wanted = 0.25 * (1 - p) ** 2 * -math.log(p + 1e-8) - 0.75 * p**2 * -math.log(1 - p + 1e-8)
    assert cost.shape == (4, 2)
    assert cost[1, 0].item() == pytest.approx(wanted)


# One image: two matched queries of IoU 0.8 and 0, and one without an object.
ASSIGNED = torch.tensor([[2, 0, NO_OBJECT]])
QUALITY = torch.tensor([[0.8, 0.0, 0.0]])
ONE_OBJECT = BatchCount(objects=1, matched=1, images=1)


def cross_entropy(p: float, target: float) -> float:
    return -target * math.log(p) - (1 - target) * math.log(1 - p)


def looped(scheme: SigmoidFocal, logits: torch.Tensor) -> float:
    """The two losses that learn the quality of boxes, by their formulas (specification §12.3)."""
    total = 0.0
    for q in range(3):
        for c in range(3):
            p = 1 / (1 + math.exp(-logits[0, q, c]))
            quality = float(QUALITY[0, q])
            if isinstance(scheme, SigmoidMatchability):
                own, weight, other = quality**1.5, 1.0, p**1.5
            else:
                own, weight, other = quality, quality, 0.75 * p**2
            is_pair = ASSIGNED[0, q] == c
            total += weight * cross_entropy(p, own) if is_pair else other * cross_entropy(p, 0.0)
    return total


@pytest.mark.parametrize("scheme", [SigmoidMatchability(3), SigmoidVarifocal(3)])
def test_losses_that_learn_the_quality_of_boxes_by_the_formula(scheme: SigmoidFocal) -> None:
    torch.manual_seed(1)
    logits = torch.randn(1, 3, 3)
    found = scheme.loss(logits, ASSIGNED, QUALITY, BatchCount(objects=4, matched=2, images=1))
    assert found.item() == pytest.approx(looped(scheme, logits) / 4)
    labels = torch.tensor([0, 1])
    assert torch.equal(
        scheme.matching_cost(logits[0], labels), SigmoidFocal(3).matching_cost(logits[0], labels)
    )


@pytest.mark.parametrize("scheme", [SigmoidMatchability(3), SigmoidVarifocal(3)])
def test_a_perfect_box_is_a_hard_label_and_the_background_is_weighed_without_a_gradient(
    scheme: SigmoidFocal,
) -> None:
    logits = torch.tensor([[[0.3, -0.2, 0.9]]], requires_grad=True)
    loss = scheme.loss(logits, torch.tensor([[2]]), torch.ones(1, 1), ONE_OBJECT)
    (gradient,) = torch.autograd.grad(loss, logits)
    p = logits.detach().sigmoid()[0, 0]
    assert gradient[0, 0, 2].item() == pytest.approx(float(p[2]) - 1)  # that of binary cross-entropy
    weight = p**1.5 if isinstance(scheme, SigmoidMatchability) else 0.75 * p**2
    torch.testing.assert_close(gradient[0, 0, :2], (weight * p)[:2])


@pytest.mark.parametrize(("scheme", "exponent"), [(SigmoidMatchability(3), 1.5), (SigmoidVarifocal(3), 1.0)])
def test_nothing_is_to_learn_once_the_score_is_the_quality(scheme: SigmoidFocal, exponent: float) -> None:
    quality = torch.tensor([[0.64]])
    logits = torch.logit(quality**exponent).expand(1, 1, 3).clone().requires_grad_()
    loss = scheme.loss(logits, torch.tensor([[1]]), quality, ONE_OBJECT)
    assert torch.autograd.grad(loss, logits)[0][0, 0, 1].item() == pytest.approx(0.0, abs=1e-6)


def test_a_badly_placed_box_still_teaches_its_class_only_with_mal() -> None:
    gradients = []
    for scheme in (SigmoidMatchability(3), SigmoidVarifocal(3)):
        logits = torch.zeros(1, 1, 3, requires_grad=True)
        loss = scheme.loss(logits, torch.tensor([[1]]), torch.tensor([[0.01]]), ONE_OBJECT)
        gradients.append(abs(torch.autograd.grad(loss, logits)[0][0, 0, 1].item()))
    assert gradients[0] > 0.4
    assert gradients[1] < 0.01


def test_softmax_loss_is_the_weighted_mean() -> None:
    torch.manual_seed(0)
    scheme = SoftmaxWithNoObject(num_classes=3, no_object_weight=0.1)
    logits = torch.randn(2, 5, 4)
    assigned = torch.tensor([[0, NO_OBJECT, 2, NO_OBJECT, 1], [NO_OBJECT] * 5])
    weight = torch.tensor([1.0, 1.0, 1.0, 0.1])
    expected = F.cross_entropy(logits.flatten(0, 1), assigned.where(assigned >= 0, 3).flatten(), weight)
    count = BatchCount(objects=3, matched=3, images=2)
    loss = scheme.loss(logits, assigned, torch.zeros(2, 5), count)
    torch.testing.assert_close(loss, expected)


def test_selection_of_focal_may_take_a_query_twice() -> None:
    scheme = SigmoidFocal(num_classes=2)
    logits = torch.tensor([[[3.0, 2.0], [1.0, -5.0]]])
    selection = scheme.select(logits, k=3)
    assert selection.queries.tolist() == [[0, 0, 1]]
    assert selection.labels.tolist() == [[0, 1, 0]]
    torch.testing.assert_close(selection.scores, torch.tensor([[3.0, 2.0, 1.0]]).sigmoid())
    assert scheme.select(logits, k=100).scores.shape == (1, 4)


def test_selection_of_softmax_takes_each_query_once_and_never_no_object() -> None:
    scheme = SoftmaxWithNoObject(num_classes=2)
    logits = torch.tensor([[[3.0, 2.0, 9.0], [1.0, 0.0, 0.0]]])
    selection = scheme.select(logits, k=100)
    assert selection.queries.tolist() == [[1, 0]]
    assert selection.labels.tolist() == [[0, 0]]


def test_the_configuration_reaches_the_scheme() -> None:
    loss = LossConfig(focal_alpha=0.5, focal_gamma=1.0, no_object_weight=0.3)
    focal = build_classification(ModelConfig(num_classes=7), loss)
    softmax = build_classification(ModelConfig(num_classes=7, classification="softmax"), loss)
    assert isinstance(focal, SigmoidFocal)
    assert (focal.num_logits, focal.alpha, focal.gamma) == (7, 0.5, 1.0)
    assert type(build_classification(ModelConfig(), LossConfig(classification_loss="mal"))) is (
        SigmoidMatchability
    )
    assert type(build_classification(ModelConfig(), LossConfig(classification_loss="varifocal"))) is (
        SigmoidVarifocal
    )
    assert isinstance(softmax, SoftmaxWithNoObject)
    assert (softmax.num_logits, softmax.no_object_weight) == (8, 0.3)


@pytest.mark.parametrize("scheme", [SigmoidFocal(4), SoftmaxWithNoObject(4)])
def test_selection_from_arrays_is_the_selection_from_tensors(scheme: ClassificationScheme) -> None:
    logits = 5 * torch.randn(2, 30, scheme.num_logits, generator=torch.Generator().manual_seed(0))
    logits[0, 0, 0], logits[0, 1, 1] = 200.0, -200.0  # exp() of either is beyond float32
    for k in (1, 20, 1000):
        wanted, found = scheme.select(logits, k), select_from_arrays(scheme, logits.numpy(), k)
        assert found.scores.dtype == np.float32
        np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-6)
        sure = wanted.scores.numpy() > 1e-3  # smaller scores may be equal
        assert (found.labels == wanted.labels.numpy())[sure].all()
        assert (found.queries == wanted.queries.numpy())[sure].all()


def test_selection_from_arrays_asks_a_scheme_from_outside() -> None:
    class FirstClassOnly(SigmoidFocal):
        def scores(self, logits: torch.Tensor) -> torch.Tensor:
            return logits.sigmoid() * torch.tensor([1.0, 0.0])

    logits = np.array([[[-1.0, 3.0], [1.0, 2.0]]], dtype=np.float32)
    found = select_from_arrays(FirstClassOnly(2), logits, 2)
    assert (found.labels.tolist(), found.queries.tolist()) == ([[0, 0]], [[1, 0]])

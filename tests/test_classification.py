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
    assert scheme.loss(logits, assigned, count).item() == pytest.approx(expected / 2)

    cost = scheme.matching_cost(logits[0], torch.tensor([2, 0]))
    p = 1 / (1 + math.exp(-logits[0, 1, 2]))
    wanted = 0.25 * (1 - p) ** 2 * -math.log(p + 1e-8) - 0.75 * p**2 * -math.log(1 - p + 1e-8)
    assert cost.shape == (4, 2)
    assert cost[1, 0].item() == pytest.approx(wanted)


def test_softmax_loss_is_the_weighted_mean() -> None:
    torch.manual_seed(0)
    scheme = SoftmaxWithNoObject(num_classes=3, no_object_weight=0.1)
    logits = torch.randn(2, 5, 4)
    assigned = torch.tensor([[0, NO_OBJECT, 2, NO_OBJECT, 1], [NO_OBJECT] * 5])
    weight = torch.tensor([1.0, 1.0, 1.0, 0.1])
    expected = F.cross_entropy(logits.flatten(0, 1), assigned.where(assigned >= 0, 3).flatten(), weight)
    loss = scheme.loss(logits, assigned, BatchCount(objects=3, matched=3, images=2))
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

"""Matching: the assignment is the best of all permutations, and what is not finite is named."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from deformable_detr.boxes import cxcywh_to_xyxy, generalized_iou
from deformable_detr.classification import SigmoidFocal
from deformable_detr.errors import NonFiniteError
from deformable_detr.loss import HungarianMatcher, assignment
from deformable_detr.structures import Predictions, Target


def case(Q: int, counts: list[int], seed: int = 0) -> tuple[Predictions, list[Target]]:
    generator = torch.Generator().manual_seed(seed)
    B = len(counts)
    predictions = Predictions(
        torch.randn(B, Q, 3, generator=generator), 0.2 + 0.4 * torch.rand(B, Q, 4, generator=generator)
    )
    targets = [
        Target(
            torch.randint(0, 3, (n,), generator=generator),
            0.2 + 0.4 * torch.rand(n, 4, generator=generator),
            image_id=f"image-{i}",
        )
        for i, n in enumerate(counts)
    ]
    return predictions, targets


@pytest.mark.parametrize("seed", range(5))
def test_best_of_all_permutations(seed: int) -> None:
    scheme = SigmoidFocal(3)
    predictions, targets = case(Q=5, counts=[3, 0, 1], seed=seed)
    (match,) = HungarianMatcher(scheme, 2, 5, 2)([(predictions, targets)])
    first = 0
    for image, target in enumerate(targets):
        of_image = slice(first, first + len(target))
        queries, objects = match.queries[of_image] - 5 * image, match.objects[of_image] - first
        first += len(target)
        cost = torch.zeros(5, len(target))
        for q in range(5):
            for n in range(len(target)):
                box, wanted = predictions.boxes_cxcywh[image, q], target.boxes_cxcywh[n]
                cost[q, n] = (
                    2 * scheme.matching_cost(predictions.logits[image], target.labels)[q, n]
                    + 5 * (box - wanted).abs().sum()
                    - 2 * generalized_iou(cxcywh_to_xyxy(box), cxcywh_to_xyxy(wanted))
                )
        best = min(
            sum(cost[q, n].item() for n, q in enumerate(chosen))
            for chosen in permutations(range(5), len(target))
        )
        found = sum(cost[q, n].item() for q, n in zip(queries, objects, strict=True))
        assert found == pytest.approx(best, abs=1e-5)
        assert sorted(objects.tolist()) == list(range(len(target)))


@pytest.mark.parametrize("pairs_at_once", [1, 40, 2**22])
def test_layers_are_matched_together_as_each_alone(
    monkeypatch: pytest.MonkeyPatch, pairs_at_once: int
) -> None:
    """Two layers with the same targets, one with other targets, and all images in one part or in several."""
    monkeypatch.setattr(assignment, "PAIRS_AT_ONCE", pairs_at_once)
    matcher = HungarianMatcher(SigmoidFocal(3), 2, 5, 2)
    first, targets = case(Q=5, counts=[3, 0, 1])
    second, others = case(Q=7, counts=[2, 4, 0], seed=1)
    layers = [(first, targets), (second, targets), (second, others)]
    for match, layer in zip(matcher(layers), layers, strict=True):
        (alone,) = matcher([layer])
        assert torch.equal(match.queries, alone.queries)
        assert torch.equal(match.objects, alone.objects)


def test_more_objects_than_queries_leaves_some_out() -> None:
    predictions, targets = case(Q=2, counts=[4])
    (match,) = HungarianMatcher(SigmoidFocal(3), 2, 5, 2)([(predictions, targets)])
    assert sorted(match.queries.tolist()) == [0, 1]
    assert len(set(match.objects.tolist())) == 2


def test_what_is_not_finite_is_named() -> None:
    matcher = HungarianMatcher(SigmoidFocal(3), 2, 5, 2)
    predictions, targets = case(Q=4, counts=[1, 2])
    predictions.boxes_cxcywh[1, 2, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="image image-1: the predictions for it"):
        matcher([(predictions, targets)])
    predictions, targets = case(Q=4, counts=[1, 2])
    targets[0].boxes_cxcywh[0, 1] = torch.inf
    with pytest.raises(NonFiniteError, match="image image-0: its target boxes"):
        matcher([(predictions, targets)])


def test_stages_are_matched_each_for_itself() -> None:
    matcher = HungarianMatcher(SigmoidFocal(3), 2, 5, 2)
    stages = [case(Q, [3, 0, 1], seed) for seed, Q in enumerate((5, 5, 40))]
    for together, stage in zip(matcher(stages), stages, strict=True):
        (alone,) = matcher([stage])
        assert torch.equal(together.queries, alone.queries)
        assert torch.equal(together.objects, alone.objects)


def test_no_objects_at_all() -> None:
    (match,) = HungarianMatcher(SigmoidFocal(3), 2, 5, 2)([case(Q=4, counts=[0, 0])])
    assert match.queries.shape == match.objects.shape == (0,)

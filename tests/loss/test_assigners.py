"""Assigners that give an object several queries (specification §12.4)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deformable_detr.classification import SigmoidFocal
from deformable_detr.errors import NonFiniteError
from deformable_detr.loss import HungarianMatcher, Known, Match, QualityAssigner, Repeated
from deformable_detr.structures import Predictions, Target

FOCAL = SigmoidFocal(3)
QUALITY = QualityAssigner(FOCAL, threshold=0.4, most=3)


def qualities(Q: int, N: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 1, (Q, N))


@given(Q=st.integers(1, 30), N=st.integers(0, 12), seed=st.integers(0, 99))
def test_an_object_has_between_one_and_three_queries_and_a_query_at_most_one_object(
    Q: int, N: int, seed: int
) -> None:
    queries, objects = QUALITY.assign(qualities(Q, N, seed))
    assert len(set(queries)) == len(queries)
    counts = np.bincount(objects, minlength=N)
    assert counts.max(initial=0) <= 3
    assert (counts > 0).sum() == min(Q, N)


@given(seed=st.integers(0, 99))
def test_the_order_of_objects_does_not_matter(seed: int) -> None:
    matrix = qualities(20, 6, seed)
    order = np.random.default_rng(seed).permutation(6)
    pairs = set(zip(*QUALITY.assign(matrix), strict=True))
    permuted = {(query, order[index]) for query, index in zip(*QUALITY.assign(matrix[:, order]), strict=True)}
    assert permuted == pairs


def test_queries_vote_for_the_object_that_they_fit_best() -> None:
    matrix = np.array(
        [
            [0.9, 0.8],  # both objects like query 0 best; together, object 1 is better off with query 1
            [0.1, 0.7],
            [0.5, 0.6],  # votes for object 1, although object 0 has room
            [0.45, 0.0],
            [0.39, 0.0],  # below the threshold
            [0.0, 0.5],  # object 1 has three already
            [0.0, 0.65],
        ]
    )
    queries, objects = QUALITY.assign(matrix)
    assert set(zip(queries.tolist(), objects.tolist(), strict=True)) == {
        (0, 0),
        (3, 0),
        (1, 1),
        (2, 1),
        (6, 1),
    }


def test_an_object_that_nothing_fits_keeps_its_best_query() -> None:
    matrix = np.full((5, 2), 0.01)
    matrix[3, 1] = 0.02
    queries, objects = QUALITY.assign(matrix)
    assert len(queries) == 2
    assert (3, 1) in set(zip(queries.tolist(), objects.tolist(), strict=True))


def test_more_objects_than_queries() -> None:
    """100 queries and 313 objects: each query gets an object of its own."""
    queries, objects = QUALITY.assign(qualities(100, 313, 0))
    assert sorted(queries) == list(range(100))
    assert len(set(objects)) == 100


def test_quality_is_a_mean_of_overlap_and_score() -> None:
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.7, 0.5, 0.4, 0.4]])
    target = Target(torch.tensor([2]), torch.tensor([[0.5, 0.5, 0.4, 0.4]]))
    logits = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]])
    found = QUALITY.matrices(logits[None], boxes[None], target.labels[None], target.boxes_cxcywh[None])[
        0, :, 0
    ]
    wanted = 0.7 * torch.tensor([1.0, 1 / 3]) + 0.3 * torch.tensor([1.0, -1.0]).sigmoid()
    torch.testing.assert_close(found, wanted)


def batch() -> tuple[Predictions, list[Target]]:
    torch.manual_seed(0)
    predictions = Predictions(torch.randn(2, 6, 3), torch.rand(2, 6, 4) * 0.5 + 0.2)
    targets = [
        Target(torch.tensor([1]), torch.tensor([[0.5, 0.5, 0.2, 0.2]])),
        Target(torch.tensor([0, 2]), torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.6, 0.6, 0.3, 0.3]])),
    ]
    return predictions, targets


@pytest.mark.parametrize(
    "assigner", [QUALITY, Repeated(HungarianMatcher(FOCAL, 2, 5, 2), 2)], ids=["quality", "repeated"]
)
def test_pairs_of_a_batch_stay_within_their_image(assigner: QualityAssigner | Repeated) -> None:
    predictions, targets = batch()
    first, second = assigner([(predictions, targets)] * 2)
    assert torch.equal(first.queries, second.queries)
    assert torch.equal(first.queries // 6, (first.objects > 0).long())
    assert set(first.objects.tolist()) == {0, 1, 2}


def test_objects_are_repeated_as_often_as_there_are_queries_for_them() -> None:
    assigner = Repeated(HungarianMatcher(FOCAL, 2, 5, 2), 4)
    for Q, N, wanted in ((12, 3, 4), (8, 3, 2), (5, 3, 1), (2, 3, 1), (5, 0, 0)):
        queries, objects = assigner.assign(qualities(Q, N, Q))
        counts = np.bincount(objects, minlength=N)
        assert counts.tolist() == [wanted] * N if Q >= N else len(queries) == Q
        assert len(set(queries)) == len(queries)


def test_repeating_once_is_the_assigner_alone() -> None:
    matcher = HungarianMatcher(FOCAL, 2, 5, 2)
    (once,), (alone,) = Repeated(matcher, 1)([batch()]), matcher([batch()])
    assert torch.equal(once.queries, alone.queries)
    assert torch.equal(once.objects, alone.objects)


def test_predictions_that_are_not_numbers_name_their_image() -> None:
    predictions, targets = batch()
    predictions.boxes_cxcywh[1, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"image .*: the predictions for it are not finite"):
        QUALITY([(predictions, targets)])


def test_known_pairs_are_the_same_in_every_layer() -> None:
    match = Match(torch.tensor([1]), torch.tensor([0]))
    assert Known(match)([batch(), batch(), batch()]) == [match] * 3

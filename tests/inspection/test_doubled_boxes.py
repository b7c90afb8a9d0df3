from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from deformable_detr.inspection.survey import repeated_boxes


def by_all_pairs(boxes: np.ndarray, labels: np.ndarray, rows: list[int]) -> list[int]:
    return [
        row
        for at, row in enumerate(rows)
        if any(
            labels[row] == labels[other] and np.abs(boxes[row] - boxes[other]).max() <= 0.5
            for other in rows[:at]
        )
    ]


@pytest.mark.parametrize("seed", range(5))
def test_as_comparing_all_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 40, (60, 4)) + rng.choice([0.0, 0.25, 0.5, 0.75], (60, 4))
    boxes = np.concatenate([corners, corners[:20], corners[20:40] + 0.5, corners[:10] + 0.51])
    labels = rng.integers(0, 2, len(boxes))
    rows = np.flatnonzero(rng.random(len(boxes)) < 0.9)
    found = repeated_boxes(boxes, labels, rows)
    assert found == by_all_pairs(boxes, labels, rows.tolist())
    assert found


def test_few_boxes() -> None:
    assert repeated_boxes(np.zeros((0, 4)), np.zeros(0, np.int64), np.arange(0)) == []
    assert repeated_boxes(np.zeros((1, 4)), np.zeros(1, np.int64), np.arange(1)) == []
    assert repeated_boxes(np.zeros((2, 4)), np.zeros(2, np.int64), np.arange(2)) == [1]
    assert repeated_boxes(np.zeros((2, 4)), np.arange(2), np.arange(2)) == []


@pytest.mark.parametrize("spread", [0.0, 0.3, 5000.0])
def test_memory_does_not_grow_with_the_square(spread: float) -> None:
    boxes = np.random.default_rng(0).random((20_000, 4)) * spread
    labels = np.zeros(len(boxes), np.int64)
    tracemalloc.start()
    found = repeated_boxes(boxes, labels, np.arange(len(boxes)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6  # all pairs: 3.2e9
    assert (len(found) == 19_999) == (spread == 0)

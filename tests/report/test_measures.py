"""Precision, thresholds and calibration on made scores, where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deformable_detr.report.measures import (
    MIN_SCORE,
    THRESHOLDS,
    calibration,
    precision_at_recalls,
    threshold_curve,
)


def test_precision_by_hand() -> None:
    right = np.array([True, False, True, False])
    curve = precision_at_recalls(right, ~right, 4)
    assert curve[0] == curve[25] == 1.0
    assert curve[26] == curve[50] == pytest.approx(2 / 3)
    assert (curve[51:] == 0).all()


def test_what_is_excused_counts_neither_way() -> None:
    right, wrong = np.array([True, False, True]), np.array([False, False, False])
    np.testing.assert_array_equal(precision_at_recalls(right, wrong, 2), np.ones(101))


def test_no_detections() -> None:
    nothing = np.zeros(0, dtype=bool)
    assert precision_at_recalls(nothing, nothing, 3).sum() == 0
    curve = threshold_curve(np.zeros(0), nothing, nothing, 3)
    assert curve.best is None
    assert curve.best_threshold is None
    assert np.isnan(curve.precision).all()
    assert calibration(np.zeros(0), nothing, nothing) is None


def test_no_objects() -> None:
    wrong = np.array([True])
    curve = threshold_curve(np.array([0.9]), ~wrong, wrong, 0)
    assert curve.best is None
    assert (curve.recall == 0).all()


@given(st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), max_size=30), st.integers(0, 10))
def test_thresholds_are_counts(detections: list[tuple[float, bool]], missed: int) -> None:
    scores = np.array([score for score, _ in detections], dtype=np.float32)
    right = np.array([hit for _, hit in detections], dtype=bool)
    objects = int(right.sum()) + missed
    curve = threshold_curve(scores, right, ~right, objects)
    for index, threshold in enumerate(THRESHOLDS):
        kept = [hit for score, hit in zip(scores, right, strict=True) if score >= np.float32(threshold)]
        hits = sum(kept)
        if kept:
            assert curve.precision[index] == pytest.approx(hits / len(kept))
        else:
            assert np.isnan(curve.precision[index])
        assert curve.recall[index] == pytest.approx(hits / max(objects, 1))
        precision, recall = hits / max(len(kept), 1), hits / max(objects, 1)
        f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
        assert curve.f1[index] == pytest.approx(f1)
    if curve.best is not None:
        assert curve.f1[curve.best] == curve.f1.max()


def test_calibrated_scores_have_no_error() -> None:
    random = np.random.default_rng(0)
    scores = random.uniform(MIN_SCORE, 1, 200_000)
    right = random.random(200_000) < scores
    found = calibration(scores, right, ~right)
    assert found is not None
    assert found.error < 0.01
    assert abs(found.bias) < 0.005
    assert found.counts.sum() == 200_000


def test_calibration_by_hand() -> None:
    scores = np.array([0.95, 0.85, 0.82, 0.15, 0.01])
    right = np.array([True, True, False, True, False])
    found = calibration(scores, right, ~right)
    assert found is not None
    assert found.counts.tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 2, 1]  # 0.01 is below MIN_SCORE
    assert found.accuracy[8] == pytest.approx(0.5)
    assert found.confidence[8] == pytest.approx(0.835)
    assert found.error == pytest.approx((0.05 + 2 * 0.335 + 0.85) / 4)
    assert found.bias == pytest.approx((0.95 + 0.85 + 0.82 + 0.15) / 4 - 3 / 4)

"""Precision and calibration on made scores, where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from deformable_detr.report.measures import (
    MIN_SCORE,
    calibration,
    precision_at_recalls,
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
    assert calibration(np.zeros(0), nothing, nothing) is None


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

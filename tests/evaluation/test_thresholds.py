"""Score thresholds on made detections, where the best choice is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deformable_detr.checkpoint import Decision
from deformable_detr.cli.main import main
from deformable_detr.data.records import ImageRecord, Split
from deformable_detr.detections import ClassTable
from deformable_detr.errors import UserError
from deformable_detr.evaluation import choose_thresholds, decision_lines, evaluate
from deformable_detr.evaluation.thresholds import THRESHOLDS, ThresholdCurve, check_rule, threshold_curve
from deformable_detr.inference.detector import Detector
from deformable_detr.inference.loading import load
from tests.support.tiny import tiny_config

MODEL = ClassTable((None, "dog", "cat", "emu"), (0, 1, 2, 3))
DATA = ClassTable(("cat", "dog", "emu"), (7, 5, 90))
IN_DATA = {1: 5, 2: 7, 3: 90}  # category ids by class index of the model


def curve(*detections: tuple[float, bool], objects: int) -> ThresholdCurve:
    scores = np.array([score for score, _ in detections], dtype=np.float32)
    right = np.array([hit for _, hit in detections], dtype=bool)
    return threshold_curve(scores, right, ~right, objects)


def threshold(index: int | None) -> float:
    assert index is not None
    return float(THRESHOLDS[index])


def test_nothing_detected_or_nothing_to_detect() -> None:
    nothing, wrong = curve(objects=3), curve((0.9, False), objects=0)
    for each in (nothing, wrong):
        assert each.best is each.best_threshold is each.most_precise is None
    assert np.isnan(nothing.precision).all()
    assert nothing.reaching(0.5) is wrong.reaching(0.5) is None
    assert (wrong.recall == 0).all()


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


def test_the_best_threshold_is_in_the_middle_between_right_and_wrong() -> None:
    found = curve((0.9, True), (0.7, True), (0.31, False), (0.2, False), objects=2)
    assert found.best_threshold == pytest.approx(0.51)  # of 0.32 to 0.70
    assert found.f1[found.best] == 1.0


def test_a_required_precision_costs_no_recall() -> None:
    found = curve((0.9, True), (0.8, False), (0.6, True), (0.4, True), (0.2, False), (0.1, False), objects=4)
    assert threshold(found.reaching(0.75)) == pytest.approx(0.30)  # 3 of 4: 0.21 to 0.40
    assert threshold(found.reaching(0.5)) == pytest.approx(0.05)  # 3 of 6: all of them
    assert threshold(found.reaching(0.76)) == pytest.approx(0.85)  # 1 of 1
    assert found.reaching(1.0) == found.most_precise
    assert curve((0.9, False), (0.5, True), objects=1).reaching(0.6) is None


def record(number: int, labels: Sequence[int]) -> ImageRecord:
    """Objects of 10 x 10 pixels in a row."""
    N = len(labels)
    boxes = np.array([[20 * n, 0, 20 * n + 10, 10] for n in range(N)], dtype=np.float64).reshape(-1, 4)
    return ImageRecord(
        path=Path(f"{number}.png"),
        file_name=f"{number}.png",
        image_id=number,
        size=(40, 200),
        boxes_xyxy=boxes,
        labels=np.array(labels, dtype=np.int64),
        crowd=np.zeros(N, dtype=bool),
        difficult=np.zeros(N, dtype=bool),
        area=np.full(N, 100.0),
        annotation_ids=np.arange(N) + 100 * number,
    )


def row(image: int, place: float, category_id: int, score: float) -> dict[str, Any]:
    """Return a detection of the object number `place` of an image, or of nothing at a fraction."""
    box = [20.0 * place, 0.0, 10.0, 10.0]
    return {"image_id": image, "category_id": category_id, "bbox": box, "score": score}


CATS_AND_DOG = Split("val", "coco", Path("made"), DATA, (record(1, [0, 0, 1]), record(2, [0])))
ROWS = [
    row(1, 0, 7, 0.6), row(1, 1, 7, 0.5), row(2, 0, 7, 0.4), row(2, 3.5, 7, 0.2),  # cats
    row(1, 2, 5, 0.9), row(1, 3.5, 5, 0.8), row(2, 3.5, 5, 0.7),  # dogs
]  # fmt: skip


def test_every_class_gets_its_own_threshold() -> None:
    decision = choose_thresholds(CATS_AND_DOG, ROWS, MODEL, IN_DATA)
    assert decision is not None
    together = decision.thresholds[0]
    assert together == pytest.approx(0.30)  # 4 of 6 are right from 0.21 to 0.40
    assert decision.thresholds == pytest.approx((together, 0.85, 0.30, together))
    assert decision.bases == ("all classes", "own", "own", "all classes")
    assert (decision.rule, decision.split, decision.images) == ("best_f1", "val", 2)
    assert decision.reason == "best F1 on val"
    lines = decision_lines(decision.by_class(MODEL.names))
    assert "dog 0.85, cat 0.3, emu 0.3" in lines[0]
    assert "val" in lines[0]
    assert len(lines) == 2
    assert lines[1].startswith("emu: no detection on val is right")


def test_a_class_that_cannot_be_precise_enough() -> None:
    rows = [*ROWS, row(2, 4.5, 5, 0.95)]  # no threshold makes more than half of the dogs right
    decision = choose_thresholds(CATS_AND_DOG, rows, MODEL, IN_DATA, 0.9)
    assert decision is not None
    assert decision.bases[1:] == ("most precise", "own", "all classes")
    assert decision.thresholds[1] == pytest.approx(0.85)  # one of two
    assert any("dog" in line and "0.9" in line for line in decision_lines(decision.by_class(MODEL.names))[1:])
    assert "0.9 on val" in decision.reason


def test_classes_that_the_data_lack_get_the_threshold_of_all() -> None:
    decision = choose_thresholds(CATS_AND_DOG, ROWS, MODEL, {2: 7})
    assert decision is not None
    assert decision.bases == ("all classes", "all classes", "own", "all classes")


def test_no_decision_without_a_right_detection() -> None:
    assert choose_thresholds(CATS_AND_DOG, [row(1, 3.5, 7, 0.9)], MODEL, IN_DATA) is None
    assert choose_thresholds(CATS_AND_DOG, [], MODEL, IN_DATA) is None
    empty = replace(CATS_AND_DOG, images=(record(1, []),))
    assert choose_thresholds(empty, [row(1, 0, 7, 0.9)], MODEL, IN_DATA) is None


@pytest.mark.parametrize("rule", [0.0, 1.01, -1, float("nan"), "best"])
def test_rules_that_are_none(rule: Any) -> None:
    with pytest.raises(UserError, match="best_f1 or a precision"):
        check_rule(rule)


# --- evaluate --decide -----------------------------------------------------------------------------------


def test_evaluate_saves_the_thresholds_that_the_model_uses_from_then_on(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, metrics = tmp_path / "model", tmp_path / "metrics.json"
    assert main(["convert", "demo", str(model), "--to", "native"]) == 0
    assert load(model).decision is None
    weights = (model / "model.safetensors").read_bytes()
    words = ["evaluate", str(model), str(tiny_data), "--decide", "0.25", "--output", str(metrics)]
    assert main(words) == 0
    said = capsys.readouterr().out
    detector = load(model)
    assert isinstance(detector.decision, Decision)
    assert detector.decision.rule == 0.25
    assert detector.decision.reason in detector.selection().reason
    assert "precision of at least 0.25 on val" in said
    assert (model / "model.safetensors").read_bytes() == weights
    content = evaluate(model, tiny_data, decide="best_f1", progress=False)
    detector = load(model)
    assert content["decision"]["thresholds"] == detector.selection().by_class
    assert detector.decision.rule == "best_f1"
    picture = sorted((tiny_data / "val").iterdir())[0]
    found, everything = detector.predict(picture), detector.predict(picture, threshold=0.0)
    minima = [detector.selection().by_class[name] for name in everything.names]
    kept = everything.scores >= np.array(minima, dtype=np.float32)
    np.testing.assert_array_equal(found.scores, everything.scores[kept])
    np.testing.assert_array_equal(
        detector.explain(picture).detections.names, np.array(everything.names)[kept]
    )


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("demo", {"decide": "best_f1"}, "demo is neither a run folder"),
        ("a.pth", {"decide": 0.9}, "a.pth is neither a run folder"),
        ("demo", {"decide": 2.0}, "best_f1 or a precision"),
        ("demo", {"decide": 0.9, "tta": True}, "without test-time augmentation"),
    ],
)
def test_where_thresholds_cannot_be_saved(
    model: str, options: dict[str, Any], message: str, tiny_data: Path
) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(model, tiny_data, **options)


def test_a_detector_has_no_folder_to_save_thresholds_in(tiny_data: Path) -> None:
    import deformable_detr as dd

    config = tiny_config()
    detector: Detector = dd.create("deformable_detr_lite", classes=["star"])
    assert config.recipe == detector.recipe
    with pytest.raises(UserError, match="pass the model's folder"):
        evaluate(detector, tiny_data, decide="best_f1")

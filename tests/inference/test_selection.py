"""Score thresholds for all, some and no classes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from deformable_detr.checkpoint import Decision
from deformable_detr.detections import ClassTable, Detections
from deformable_detr.errors import UserError
from deformable_detr.inference.selection import Selection

TABLE = ClassTable(("car", "bus", None, "person"), (1, 2, 3, 4))


def detections() -> Detections:
    """Scores 0.9, 0.8, … 0.1, 0.0; classes in turn."""
    labels = np.array([0, 1, 3, 0, 1, 3, 0, 1, 3, 0])
    return Detections(
        boxes_xyxy=np.zeros((10, 4), np.float32),
        scores=np.linspace(0.9, 0.0, 10).astype(np.float32),
        labels=labels,
        category_ids=labels + 1,
        names=tuple(TABLE.name(label) for label in labels),
        image_size=(10, 10),
    )


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"threshold": 0.55}, [0, 1, 2, 3]),
        ({"threshold": 0.0}, list(range(10))),
        ({"threshold": 1.0}, []),
        ({"threshold": 0.0, "classes": ["bus"]}, [1, 4, 7]),
        ({"threshold": 0.75, "class_thresholds": {"person": 0.1}}, [0, 1, 2, 5, 8]),
        ({"threshold": 0.0, "class_thresholds": {"car": 1.0}}, [1, 2, 4, 5, 7, 8]),
        ({"threshold": 0.75, "classes": ["bus", "car"], "class_thresholds": {"bus": 0.4}}, [0, 1, 4]),
    ],
)
def test_what_is_kept(options: dict[str, Any], kept: list[int]) -> None:
    found = detections()
    wanted = Selection.of(TABLE, **options)(found)
    np.testing.assert_array_equal(wanted.scores, found.scores[kept])
    assert wanted.names == tuple(found.names[i] for i in kept)


OWN = Decision((0.32, 0.45, 0.4, 0.28), ("own", "own", "all classes", "own"), "best_f1", "val", 9)


@pytest.mark.parametrize(
    ("options", "thresholds", "words"),
    [
        ({}, [0.32, 0.45, 0.4, 0.28], "car 0.32, bus 0.45, person 0.28 (best F1 on val)"),
        ({"threshold": 0.3}, [0.3] * 4, "0.3 (as requested)"),
        ({"classes": ["bus"]}, [np.inf, 0.45, np.inf, np.inf], "0.45 (best F1 on val)"),
        (
            {"class_thresholds": {"car": 0.9}},
            [0.9, 0.45, 0.4, 0.28],
            "car 0.9, bus 0.45, person 0.28 (best F1 on val; as requested for car)",
        ),
        ({"decision": None}, [0.5] * 4, "0.5 (the usual one; the model has no thresholds of its own)"),
    ],
)
def test_the_models_own_thresholds(options: dict[str, Any], thresholds: list[float], words: str) -> None:
    selection = Selection.of(TABLE, **{"decision": OWN, **options})
    np.testing.assert_array_equal(selection.thresholds, np.array(thresholds, dtype=np.float32))
    assert selection.in_words() == words


def test_many_thresholds_are_not_all_listed() -> None:
    names = tuple(f"class{n}" for n in range(80))
    decision = Decision(tuple(n / 100 for n in range(80)), ("own",) * 80, 0.9, "val", 9)
    selection = Selection.of(ClassTable.from_names(names), decision=decision)
    assert "… and 72 more" in selection.in_words()
    assert selection.common is None
    assert selection.by_class["class79"] == 0.79


def test_boxes_are_clipped_to_the_picture() -> None:
    found = replace(
        detections(),
        boxes_xyxy=np.tile(np.array([[-3, 2, 25, 14], [1, -0.5, 19, 10]], np.float32), (5, 1)),
        image_size=(10, 20),
    )
    wanted = Selection.of(TABLE, 0.75)(found)
    assert wanted.boxes_xyxy.tolist() == [[0, 2, 20, 10], [1, 0, 19, 10]]
    assert wanted.boxes_xyxy.dtype == np.float32
    assert found.boxes_xyxy[0].tolist() == [-3, 2, 25, 14]


def test_loosened_thresholds_leave_unwanted_classes_out() -> None:
    loose = Selection.of(TABLE, 0.8, classes=["car"]).loosened(0.5)
    np.testing.assert_allclose(loose(detections()).scores, [0.9, 0.6], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"classes": ["cars"]}, "has no class cars: did you mean car? It has car, bus, person."),
        ({"class_thresholds": {"zebra": 0.5}}, "has no class zebra: it has car, bus, person."),
        ({"classes": []}, "names no class"),
        ({"classes": "car"}, "classes=[\"car\"], not 'car'"),
        ({"class_thresholds": {"car": 1.5}}, "the threshold of car must be between 0 and 1, not 1.5"),
        ({"class_thresholds": {"car": float("nan")}}, "between 0 and 1"),
        ({"classes": ["car"], "class_thresholds": {"bus": 0.5}}, "threshold for bus, which is not among"),
        ({"threshold": -1}, "threshold must be between 0 and 1, not -1"),
    ],
)
def test_ambiguous_or_impossible_input_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as refusal:
        Selection.of(TABLE, **{"threshold": 0.5, **options})
    assert words in str(refusal.value)


def test_a_long_list_of_classes_is_shortened() -> None:
    table = ClassTable.from_names([f"class {number}" for number in range(90)])
    with pytest.raises(UserError, match=r"class 19 and 70 more\.$"):
        Selection.of(table, 0.5, classes=["x"])


@pytest.mark.parametrize(
    ("classes", "chosen"),
    [
        (["bus, coach"], ["bus, coach"]),
        (["bus", "coach"], ["bus, coach"]),
        (["car", "bus", "coach", "van"], ["car", "bus, coach", "van"]),
        (["a", "b", "c"], ["a,b,c"]),
        (["a", "b"], ["a , b"]),
        (["odd"], ["odd,"]),
    ],
)
def test_class_names_with_commas(classes: list[str], chosen: list[str]) -> None:
    names = ["bus, coach", "car", "van", "a,b,c", "a , b", "odd,"]
    selection = Selection.of(ClassTable.from_names(names), 0.5, classes)
    assert [name for name, least in zip(names, selection.thresholds, strict=True) if least == 0.5] == [
        name for name in names if name in chosen
    ]


def test_a_class_by_itself_is_not_part_of_another() -> None:
    table = ClassTable.from_names(["bus, coach", "bus", "coach"])
    assert Selection.of(table, 0.5, ["bus", "coach"]).thresholds.tolist() == [np.inf, 0.5, 0.5]


@pytest.mark.parametrize("field", ["scores", "boxes_xyxy"])
def test_output_that_is_not_finite_is_refused(field: str) -> None:
    found = detections()
    broken = replace(found, **{field: np.full_like(getattr(found, field), np.nan)})
    with pytest.raises(UserError, match="not finite"):
        Selection.of(TABLE, 0.0)(broken)

"""The report's matching is COCO's: average precision from it is the evaluator's, class by class; and the
confusion matrix is that of nested loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deformable_detr.data.formats import read_split
from deformable_detr.data.records import ImageRecord, Split
from deformable_detr.detections import ClassTable
from deformable_detr.evaluation import ground_truth_of
from deformable_detr.evaluation.average_precision import coco_average_precision
from deformable_detr.evaluation.matching import LOOSE, Objects, ScoredBoxes, confusion, match
from deformable_detr.evaluation.thresholds import threshold_curve
from deformable_detr.report.measures import class_curves
from tests.support.paths import data_set

CLASSES = ClassTable(("b", "a", "c"), (2, 0, 90))
IMAGE_IDS = (0, 3, 7)
# Few values, so that overlaps of exactly 0.5 and 0.75, equal overlaps and equal scores are common.
boxes = st.tuples(
    st.sampled_from([0.0, 10.0, 20.0]), st.sampled_from([0.0, 5.0]), st.sampled_from([20.0, 30.0, 40.0]),
    st.sampled_from([10.0, 20.0]),
)  # fmt: skip
scores = st.sampled_from([0.05, 0.25, 0.3, 0.5, 0.8, 0.95])


def record(image_id: int, objects: list[tuple[tuple[float, ...], int, bool]]) -> ImageRecord:
    bboxes = np.array([box for box, _, _ in objects], dtype=np.float64).reshape(-1, 4)
    count = len(objects)
    return ImageRecord(
        path=Path(f"{image_id}.jpg"),
        file_name=f"{image_id}.jpg",
        image_id=image_id,
        size=(60, 80),
        boxes_xyxy=np.concatenate([bboxes[:, :2], bboxes[:, :2] + bboxes[:, 2:]], axis=1),
        labels=np.array([label for _, label, _ in objects], dtype=np.int64),
        crowd=np.array([crowd for _, _, crowd in objects], dtype=bool),
        difficult=np.zeros(count, dtype=bool),
        area=bboxes[:, 2] * bboxes[:, 3],
        annotation_ids=np.arange(count),
    )


def row(box: tuple[float, ...], score: float, image_id: int, label: int) -> dict[str, Any]:
    return {
        "image_id": image_id,
        "category_id": CLASSES.category_ids[label],
        "bbox": list(box),
        "score": score,
    }


@st.composite
def scenes(draw: st.DrawFn) -> tuple[Split, list[dict[str, Any]]]:
    objects = st.tuples(boxes, st.integers(0, 2), st.sampled_from([False, False, False, True]))
    images = tuple(record(image_id, draw(st.lists(objects, max_size=5))) for image_id in IMAGE_IDS)
    rows = draw(
        st.lists(st.builds(row, boxes, scores, st.sampled_from(IMAGE_IDS), st.integers(0, 2)), max_size=14)
    )
    # collect_detections' order: by image, best score first.
    rows.sort(key=lambda each: (each["image_id"], -each["score"]))
    return Split("val", "coco", Path("made"), CLASSES, images), rows


def average_precisions(split: Split, rows: list[dict[str, Any]], threshold: float) -> np.ndarray:
    found, objects = ScoredBoxes.from_rows(rows, split), Objects.from_split(split)
    return class_curves(found, objects, match(found, objects, threshold), len(split.classes)).mean(axis=1)


def assert_agrees(split: Split, rows: list[dict[str, Any]]) -> None:
    wanted = coco_average_precision(ground_truth_of(split), rows)["per_class"]
    names = split.classes.names
    loose = average_precisions(split, rows, 0.5)
    every = [average_precisions(split, rows, threshold) for threshold in np.linspace(0.5, 0.95, 10)]
    assert {names[label] for label in np.flatnonzero(~np.isnan(loose))} == wanted.keys()
    for name, numbers in wanted.items():
        label = names.index(name)
        assert loose[label] == pytest.approx(numbers["AP50"], abs=1e-9)
        assert np.mean([curves[label] for curves in every]) == pytest.approx(numbers["AP"], abs=1e-9)


@settings(max_examples=60)
@given(scenes())
def test_the_area_under_the_curves_is_the_evaluators_ap(scene: tuple[Split, list[dict[str, Any]]]) -> None:
    assert_agrees(*scene)


@pytest.mark.parametrize(("data", "split"), [("tiny_coco", "val"), ("bccd_coco", "test")])
def test_the_same_on_real_objects(data: str, split: str) -> None:
    part = read_split(data_set(data), split)
    random = np.random.default_rng(0)
    rows = []
    for image in part.images:
        truths = ground_truth_of(Split(part.name, "coco", part.source, part.classes, (image,)))["annotations"]
        made = [
            {
                "image_id": image.image_id,
                "category_id": truth["category_id"],
                "bbox": [max(0.0, value + float(random.normal(0, 3))) for value in truth["bbox"]],
                "score": round(float(random.random()), 2),
            }
            for truth in truths * 2
            if random.random() < 0.7
        ]
        rows += sorted(made, key=lambda each: -each["score"])
    assert_agrees(part, rows)


# ---------------------------------------------------------------- confusion


def nested_loop_iou(a: np.ndarray, b: np.ndarray) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    areas = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
    return float(shared / (sum(areas) - shared))


def nested_loop_confusion(
    split: Split,
    found: ScoredBoxes,
    threshold: float,
    right: np.ndarray,
    excused: np.ndarray,
    own: np.ndarray,
) -> np.ndarray:
    """One detection after the other, one object after the other."""
    C = len(split.classes)
    table = np.zeros((C + 1, C + 1), dtype=int)
    start = 0
    for number, image in enumerate(split.images):
        taken: set[int] = set()
        mine = [d for d in range(len(found)) if found.images[d] == number and found.scores[d] >= threshold]
        for d in mine:
            if right[d]:
                taken.add(int(own[d]) - start)
                table[found.labels[d], found.labels[d]] += 1
        for d in mine:
            if right[d] or excused[d]:
                continue
            best, best_iou = None, 0.5
            for n in range(len(image)):
                if image.crowd[n] or n in taken:
                    continue
                iou = nested_loop_iou(found.boxes_xyxy[d], image.boxes_xyxy[n])
                if iou >= best_iou:
                    best, best_iou = n, iou
            if best is None:
                table[C, found.labels[d]] += 1
            else:
                taken.add(best)
                table[image.labels[best], found.labels[d]] += 1
        for n in range(len(image)):
            if not image.crowd[n] and n not in taken:
                table[image.labels[n], C] += 1
        start += len(image)
    return table


@settings(max_examples=60)
@given(scenes(), st.sampled_from([0.0, 0.3, 0.9]))
def test_the_confusion_matrix_is_that_of_nested_loops(
    scene: tuple[Split, list[dict[str, Any]]], threshold: float
) -> None:
    split, rows = scene
    found, objects = ScoredBoxes.from_rows(rows, split), Objects.from_split(split)
    matches = match(found, objects, LOOSE)
    table = confusion(found, objects, matches, found.scores >= threshold, 3)
    wanted = nested_loop_confusion(split, found, threshold, matches.right, matches.excused, matches.objects)
    np.testing.assert_array_equal(table, wanted)
    # every object is in one cell of its row, every detection that counts in one of its column
    np.testing.assert_array_equal(table[:3].sum(1), np.bincount(objects.labels[~objects.crowd], minlength=3))
    loud = (found.scores >= threshold) & ~matches.excused
    np.testing.assert_array_equal(table[:, :3].sum(0), np.bincount(found.labels[loud], minlength=3))


def test_the_diagonal_is_what_the_threshold_curve_counts() -> None:
    objects = [((0.0, 0.0, 20.0, 20.0), 0, False), ((30.0, 0.0, 20.0, 20.0), 1, False)]
    split = Split("val", "coco", Path("made"), CLASSES, (record(0, objects),))
    rows = [
        row((30.0, 0.0, 20.0, 20.0), 0.9, 0, 2),  # a "b" is called "c"
        row((0.0, 0.0, 20.0, 20.0), 0.8, 0, 0),
        row((0.0, 0.0, 20.0, 18.0), 0.7, 0, 0),  # found twice
        row((60.0, 40.0, 10.0, 10.0), 0.4, 0, 1),
    ]
    found, truths = ScoredBoxes.from_rows(rows, split), Objects.from_split(split)
    matches = match(found, truths, LOOSE)
    table = confusion(found, truths, matches, found.scores >= 0.5, 3)
    assert table.tolist() == [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
    curve = threshold_curve(found.scores, matches.right, matches.wrong, 2)
    assert curve.precision[49] == pytest.approx(1 / 3)
    assert curve.recall[49] == pytest.approx(1 / 2)


def test_an_object_of_its_own_class_goes_first() -> None:
    objects = [((0.0, 0.0, 20.0, 20.0), 1, False), ((0.0, 0.0, 20.0, 22.0), 0, False)]
    split = Split("val", "coco", Path("made"), CLASSES, (record(0, objects),))
    # It overlaps the other class's object more, but is right about its own.
    rows = [row((0.0, 0.0, 20.0, 20.0), 0.9, 0, 0)]
    found, truths = ScoredBoxes.from_rows(rows, split), Objects.from_split(split)
    table = confusion(found, truths, match(found, truths, LOOSE), found.scores >= 0.5, 3)
    assert table[0, 0] == 1
    assert table[1, 3] == 1

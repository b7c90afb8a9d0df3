"""Average precision: published and computed goldens, pycocotools, and Pascal's rules as nested loops."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deformable_detr.errors import UserError
from deformable_detr.evaluation.average_precision import (
    CLASS_METRICS,
    COCO_METRICS,
    coco_average_precision,
    coco_numbers,
    voc_average_precision,
)
from tests.support.paths import data_set

COCO_GOLDENS = (
    "A_coco_official_val2014_100",
    "B_coco_nocrowd_val2014_100",
    "C_ignore_flag",
    "F_generated_aerial_val_category_id_zero",
    "F_generated_bccd_test",
    "F_generated_tiny_coco_val",
)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def truth(
    boxes: list[dict[str, Any]], images: int = 1, classes: tuple[str, ...] = ("cat",)
) -> dict[str, Any]:
    """A ground truth with image ids 0, 1, …, category ids 10, 20, …; a box needs `bbox` only."""
    return {
        "images": [{"id": index} for index in range(images)],
        "categories": [{"id": 10 * (index + 1), "name": name} for index, name in enumerate(classes)],
        "annotations": [
            {"id": index, "image_id": 0, "category_id": 10, **box} for index, box in enumerate(boxes)
        ],
    }


def found(bbox: list[float], score: float, image_id: int = 0, category_id: int = 10) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score}


# --- goldens ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COCO_GOLDENS)
def test_coco_goldens(name: str) -> None:
    folder = data_set(f"eval_goldens/{name}")
    expected = read_json(folder / "expected.json")
    ground_truth = read_json(
        data_set(expected["ground_truth"]) if "ground_truth" in expected else folder / "gt.json"
    )
    metrics = coco_average_precision(ground_truth, read_json(folder / "dt.json"))
    computed = expected["computed_pycocotools_2.0.11"]
    assert {key: metrics[key] for key in COCO_METRICS} == pytest.approx(computed, abs=1e-12)
    for published, digits in (("published_3_digits", 3), ("published_6_digits", 6), ("published_full", 15)):
        for key, value in expected.get(published, {}).items():
            assert metrics[key] == pytest.approx(value, abs=0.51 * 10**-digits), (published, key)
    if "computed_per_category" in expected:
        per_class = {
            key: {"AP": v["AP"], "AP50": v["AP50"]} for key, v in expected["computed_per_category"].items()
        }
        assert metrics["per_class"].keys() == per_class.keys()
        for key, numbers in per_class.items():
            assert metrics["per_class"][key] == pytest.approx(numbers, abs=1e-12), key


def test_voc_golden_padilla_case1() -> None:
    folder = data_set("eval_goldens/D_voc_ap_padilla_case1")
    names = sorted(path.stem for path in (folder / "gts").glob("*.txt"))
    boxes, rows = [], []
    for image_id, name in enumerate(names):
        for line in (folder / "gts" / f"{name}.txt").read_text().splitlines():
            boxes.append({"image_id": image_id, "bbox": [float(v) for v in line.split()[1:]]})
        for line in (folder / "dets" / f"{name}.txt").read_text().splitlines():
            score, *bbox = (float(v) for v in line.split()[1:])
            rows.append(found(bbox, score, image_id))
    assert (len(names), len(boxes), len(rows)) == (7, 15, 24)
    expected = read_json(folder / "expected.json")
    for interpolation in ("11_point", "every_point"):
        for threshold, value in expected[interpolation].items():
            metrics = voc_average_precision(
                truth(boxes, images=len(names)),
                rows,
                iou_threshold=float(threshold),
                interpolation=interpolation,
                plus_one=True,
            )
            assert metrics["mAP"] == pytest.approx(value, abs=1e-10), (interpolation, threshold)


@pytest.mark.parametrize("plus_one", [False, True])
def test_voc_golden_padilla_toy(plus_one: bool) -> None:
    folder = data_set("eval_goldens/E_voc_toy_padilla")
    ground_truth = read_json(folder / "gt_coco.json")
    rows = read_json(folder / "dets_coco_export.json")["annotations"]
    for threshold, values in read_json(folder / "expected.json")["published"].items():
        for interpolation, value in values.items():
            metrics = voc_average_precision(
                ground_truth,
                rows,
                iou_threshold=float(threshold),
                interpolation=interpolation,
                plus_one=plus_one,
            )
            assert metrics["mAP"] == pytest.approx(value, abs=0.51e-4), (interpolation, threshold)


# --- COCO ------------------------------------------------------------------------------------------------


def test_coco_by_hand() -> None:
    """Two truths; a hit at IoU 1, a false alarm, a hit at IoU 0.6 (thresholds .50, .55, .60)."""
    ground_truth = truth([{"bbox": [0, 0, 10, 10]}, {"bbox": [50, 50, 10, 10]}])
    rows = [found([0, 0, 10, 10], 0.9), found([20, 20, 10, 10], 0.8), found([50, 50, 10, 6], 0.7)]
    metrics = coco_average_precision(ground_truth, rows)
    # Recalls 0, .01, …, .50 (51 of 101) have precision 1; above, 2/3 where the third one is a hit.
    both, one = (51 + 50 * 2 / 3) / 101, 51 / 101
    assert metrics["AP50"] == pytest.approx(both)
    assert metrics["AP75"] == pytest.approx(one)
    assert metrics["AP"] == pytest.approx(0.3 * both + 0.7 * one)
    assert metrics["AR1"] == pytest.approx(0.5)
    assert metrics["AR100"] == pytest.approx(0.65)
    assert metrics["APs"] == metrics["AP"]
    assert (metrics["APm"], metrics["APl"], metrics["ARm"]) == (-1, -1, -1)
    assert metrics["per_class"] == {"cat": {"AP": metrics["AP"], "AP50": metrics["AP50"]}}
    assert all(type(metrics[key]) is float for key in COCO_METRICS)


def test_coco_crowds_excuse_detections_and_need_not_be_found() -> None:
    boxes = [{"bbox": [0, 0, 10, 10]}, {"bbox": [100, 100, 100, 100], "iscrowd": 1}]
    rows = [found([110, 110, 20, 20], 0.9), found([150, 150, 20, 20], 0.8), found([0, 0, 10, 10], 0.1)]
    assert coco_average_precision(truth(boxes), rows)["AP"] == pytest.approx(1)


def test_coco_counts_100_detections_of_an_image_and_class() -> None:
    crowd_of_false_alarms = [found([40, 40, 5, 5], 0.9) for _ in range(100)]
    metrics = coco_average_precision(
        truth([{"bbox": [0, 0, 10, 10]}]), [*crowd_of_false_alarms, found([0, 0, 10, 10], 0.5)]
    )
    assert metrics["AP"] == 0


def test_coco_without_detections_or_truth() -> None:
    nothing_found = coco_average_precision(truth([{"bbox": [0, 0, 10, 10]}]), [])
    assert nothing_found["AP"] == nothing_found["AR100"] == nothing_found["APs"] == 0
    assert nothing_found["APl"] == -1
    assert nothing_found["per_class"] == {"cat": {"AP": 0, "AP50": 0}}
    no_truth = coco_average_precision(truth([]), [found([0, 0, 10, 10], 0.5)])
    assert {no_truth[key] for key in COCO_METRICS} == {-1}
    assert no_truth["per_class"] == {}
    empty = coco_average_precision({"images": [], "categories": [], "annotations": []}, [])
    assert {empty[key] for key in COCO_METRICS} == {-1}


def test_coco_leaves_its_arguments_and_the_screen_alone(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    ground_truth = truth([{"bbox": [0, 0, 10, 10], "segmentation": [[0, 0, 9, 9, 0, 9]], "ignore": 1}])
    rows = [found([0, 0, 10, 10], 0.5)]
    before = copy.deepcopy((ground_truth, rows))
    with caplog.at_level("INFO"):
        coco_average_precision(ground_truth, rows)
    assert (ground_truth, rows) == before
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_annotation_ids_do_not_matter() -> None:
    """An id of 0 or the same id twice spoils COCO's own bookkeeping."""
    ground_truth = truth([{"bbox": [0, 0, 10, 10], "id": 0}, {"bbox": [20, 20, 10, 10], "id": 0}])
    rows = [found([0, 0, 10, 10], 0.5), found([20, 20, 10, 10], 0.4)]
    assert coco_average_precision(ground_truth, rows)["AP"] == pytest.approx(1)


def test_numbers_may_be_numpy() -> None:
    rows = [found(list(np.array([0, 0, 10, 10], np.float32)), np.float32(0.5), np.int64(0), np.int64(10))]
    assert coco_average_precision(truth([{"bbox": [0, 0, 10, 10]}]), rows)["AP"] == pytest.approx(1)


def test_classes_of_the_same_name_are_distinguished() -> None:
    ground_truth = truth(
        [{"bbox": [0, 0, 9, 9]}, {"bbox": [0, 0, 9, 9], "category_id": 20}], 1, ("cat", "cat")
    )
    metrics = coco_average_precision(ground_truth, [found([0, 0, 9, 9], 0.5)])
    assert {name: round(numbers["AP"]) for name, numbers in metrics["per_class"].items()} == {
        "cat (10)": 1,
        "cat (20)": 0,
    }


@pytest.mark.parametrize("score", [coco_average_precision, voc_average_precision])
@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            found([0, 0, 1, 1], 0.5, image_id=7),
            "detection 1 has image_id 7, which is not one of the 1 images",
        ),
        (
            found([0, 0, 1, 1], 0.5, category_id=1),
            "detection 1 has category_id 1, which is not one of the 1 cat",
        ),
        (found([0, float("nan"), 1, 1], 0.5), r"detection 1 \(image_id 0\) has bbox \[0, nan, 1, 1\]"),
        (found([0, 0, 1, 1], float("inf")), "score inf: four finite numbers"),
        (found([0, 0, 1], 0.5), "four finite numbers"),
        (found([0, 0, 1, cast(float, "1")], 0.5), "four finite numbers"),
        (found([5, 5, -1, 1], 0.5), "negative width or height"),
        ({"image_id": 0, "category_id": 10, "score": 0.5}, "detection 1 has no bbox"),
    ],
)
def test_wrong_detections_are_refused(score: Any, row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        score(truth([{"bbox": [0, 0, 10, 10]}]), [found([0, 0, 1, 1], 0.5), row])


# Sides that fall on COCO's limits of small and large (32², 96²) and make equal overlaps likely.
sides = st.sampled_from([1, 4, 8, 16, 32, 33, 96, 97])
bboxes = st.tuples(st.sampled_from([0, 2, 4, 8, 16]), st.sampled_from([0, 2, 4, 8, 16]), sides, sides).map(
    list
)
scores = st.sampled_from([0.1, 0.25, 0.5, 0.5000001, 0.9])
image_ids = st.sampled_from([0, 3, 7, 500])
category_ids = st.sampled_from([0, 2, 90])


@st.composite
def small_sets(draw: st.DrawFn) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    annotations = draw(
        st.lists(
            st.fixed_dictionaries(
                {
                    "image_id": image_ids,
                    "category_id": category_ids,
                    "bbox": bboxes,
                    "iscrowd": st.sampled_from([0, 0, 0, 1]),
                    "difficult": st.sampled_from([0, 0, 1]),
                    "area": st.sampled_from([1.0, 500.0, 1024.0, 9216.0, 20000.0]),
                }
            ),
            max_size=12,
        )
    )
    rows = st.builds(found, bbox=bboxes, score=scores, image_id=image_ids, category_id=category_ids)
    ground_truth = {
        "images": [{"id": image_id} for image_id in (500, 0, 7, 3)],
        "categories": [{"id": 2, "name": "b"}, {"id": 0, "name": "a"}, {"id": 90, "name": "c"}],
        "annotations": [{"id": index + 1, **annotation} for index, annotation in enumerate(annotations)],
    }
    # A detection of a true box now and then, or there would hardly be any hits.
    copies = [
        found(annotation["bbox"], draw(scores), annotation["image_id"], annotation["category_id"])
        for annotation in annotations
        if draw(st.booleans())
    ]
    return ground_truth, draw(st.permutations(draw(st.lists(rows, max_size=12)) + copies))


def pycocotools_metrics(ground_truth: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth_index, found_index = COCO(), COCO()
    truth_index.dataset = copy.deepcopy(ground_truth)
    found_index.dataset = copy.deepcopy(ground_truth)
    found_index.dataset["annotations"] = [
        {**row, "id": index + 1, "iscrowd": 0, "area": row["bbox"][2] * row["bbox"][3]}
        for index, row in enumerate(rows)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth_index.createIndex()
        found_index.createIndex()
        evaluation = COCOeval(truth_index, found_index, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    names = {category["id"]: category["name"] for category in ground_truth["categories"]}
    per_class = {}
    for index, category_id in enumerate(evaluation.params.catIds):
        precision = evaluation.eval["precision"][:, :, index, 0, -1]
        if (precision > -1).any():
            per_class[names[category_id]] = {
                "AP": precision[precision > -1].mean(),
                "AP50": precision[0][precision[0] > -1].mean(),
            }
    return {**dict(zip(COCO_METRICS, evaluation.stats.tolist(), strict=True)), "per_class": per_class}


@settings(max_examples=60)
@given(small_sets())
def test_coco_agrees_with_pycocotools(data: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    ours, theirs = coco_average_precision(*data), pycocotools_metrics(*data)
    our_classes, their_classes = ours.pop("per_class"), theirs.pop("per_class")
    assert ours == pytest.approx(theirs, abs=1e-12)
    assert our_classes.keys() == their_classes.keys()
    for name, numbers in our_classes.items():
        assert numbers == pytest.approx(their_classes[name], abs=1e-12)


@settings(max_examples=30)
@given(small_sets())
def test_the_numbers_of_a_class_are_those_of_its_objects_alone(
    data: tuple[dict[str, Any], list[dict[str, Any]]],
) -> None:
    ground_truth, rows = data
    numbers = coco_numbers(ground_truth, rows)
    for category in ground_truth["categories"]:
        own = [
            [row for row in each if row["category_id"] == category["id"]]
            for each in (ground_truth["annotations"], rows)
        ]
        alone = coco_numbers({**ground_truth, "annotations": own[0]}, own[1])
        if alone.summary["AP"] < 0:
            assert category["id"] not in numbers.classes
            continue
        found = numbers.classes[category["id"]]
        assert tuple(found) == CLASS_METRICS
        assert found == pytest.approx({name: alone.summary[name] for name in CLASS_METRICS}, abs=1e-12)


# --- Pascal VOC ------------------------------------------------------------------------------------------


def test_voc_by_hand() -> None:
    """Right, duplicate, right, missed: recalls 1/3, 1/3, 2/3 with precisions 1, 1/2, 2/3."""
    boxes = [{"bbox": [0, 0, 10, 10]}, {"bbox": [50, 50, 10, 10]}, {"bbox": [90, 90, 5, 5]}]
    rows = [found([0, 0, 10, 9], 0.9), found([0, 0, 10, 10], 0.8), found([50, 50, 10, 10], 0.7)]
    every_point = voc_average_precision(truth(boxes), rows)
    assert every_point["mAP"] == pytest.approx((1 + 2 / 3) / 3)
    assert every_point["per_class"] == {"cat": {"AP": every_point["mAP"]}}
    eleven = voc_average_precision(truth(boxes), rows, interpolation="11_point")
    assert eleven["mAP"] == pytest.approx((4 * 1 + 3 * 2 / 3) / 11)  # recall 0 … 0.3, 0.4 … 0.6


def test_voc_difficult_boxes_do_not_count_either_way() -> None:
    boxes = [{"bbox": [0, 0, 10, 10]}, {"bbox": [50, 50, 10, 10], "difficult": 1}]
    excused = [found([50, 50, 10, 10], 0.9), found([51, 50, 10, 10], 0.8)]
    rows = [*excused, found([0, 0, 10, 10], 0.1)]
    assert voc_average_precision(truth(boxes), rows)["mAP"] == 1
    only_difficult = voc_average_precision(truth(boxes[1:]), excused)
    assert only_difficult == {"mAP": -1.0, "per_class": {}}


def test_voc_a_detection_claims_only_its_best_overlap() -> None:
    """The best overlap is taken already: the second detection does not turn to the next best box."""
    boxes = [{"bbox": [0, 0, 10, 10]}, {"bbox": [2, 0, 10, 10]}]
    rows = [found([0, 0, 10, 10], 0.9), found([0, 0, 10, 10], 0.8)]
    assert voc_average_precision(truth(boxes), rows)["mAP"] == pytest.approx(0.5)


def test_voc_equal_scores_keep_their_order() -> None:
    boxes = [{"bbox": [0, 0, 10, 10]}]
    hit, miss = found([0, 0, 10, 10], 0.5), found([50, 50, 10, 10], 0.5)
    assert voc_average_precision(truth(boxes), [hit, miss])["mAP"] == 1
    assert voc_average_precision(truth(boxes), [miss, hit])["mAP"] == 0.5


def test_voc_eleven_point_recall_is_rounded_as_everywhere() -> None:
    """3 found of 10 miss the recall level 3 * 0.1 > 0.3, as in the code that made the published numbers."""
    boxes = [{"bbox": [20 * n, 0, 10, 10]} for n in range(10)]
    for num_found, levels in ((2, 3), (3, 3), (4, 5), (10, 11)):
        rows = [found([20 * n, 0, 10, 10], 0.5) for n in range(num_found)]
        metrics = voc_average_precision(truth(boxes), rows, interpolation="11_point")
        assert metrics["mAP"] == pytest.approx(levels / 11)


def test_voc_plus_one_widens_boxes() -> None:
    boxes, rows = [{"bbox": [0, 0, 1, 1]}], [found([1, 0, 1, 1], 0.5)]  # 2x2 pixels, one column shared
    for threshold, plus_one, expected in ((1 / 3, True, 1), (1 / 3, False, 0), (0.34, True, 0)):
        metrics = voc_average_precision(truth(boxes), rows, iou_threshold=threshold, plus_one=plus_one)
        assert metrics["mAP"] == expected


def test_voc_boxes_without_area() -> None:
    point = [{"bbox": [5, 5, 0, 0]}]
    assert voc_average_precision(truth(point), [found([5, 5, 0, 0], 0.5)])["mAP"] == 0


def test_voc_options_are_checked() -> None:
    with pytest.raises(UserError, match="iou_threshold must be in"):
        voc_average_precision(truth([]), [], iou_threshold=0)
    with pytest.raises(UserError, match="every_point or 11_point, not 12"):
        voc_average_precision(truth([]), [], interpolation="12")  # type: ignore[arg-type]


def nested_loop_voc(
    ground_truth: dict[str, Any], rows: list[dict[str, Any]], threshold: float, eleven: bool, plus: float
) -> dict[str, float]:
    """Pascal's development kit, statement by statement."""
    result = {}
    for category in ground_truth["categories"]:
        truths = [a for a in ground_truth["annotations"] if a["category_id"] == category["id"]]
        wanted = sum(1 for a in truths if not a["difficult"] and not a["iscrowd"])
        if wanted == 0:
            continue
        claimed: set[int] = set()
        right = wrong = 0
        curve = []
        mine = [row for row in rows if row["category_id"] == category["id"]]
        for row in sorted(mine, key=lambda row: -row["score"]):
            best, best_overlap = None, float("-inf")
            for a in truths:
                if a["image_id"] != row["image_id"]:
                    continue
                (x, y, w, h), (u, v, s, t) = row["bbox"], a["bbox"]
                across = min(x + w, u + s) - max(x, u) + plus
                down = min(y + h, v + t) - max(y, v) + plus
                if across > 0 and down > 0:
                    union = (w + plus) * (h + plus) + (s + plus) * (t + plus) - across * down
                    if across * down / union > best_overlap:
                        best, best_overlap = a, across * down / union
            if best is None or best_overlap < threshold:
                wrong += 1
            elif best["difficult"] or best["iscrowd"]:
                continue
            elif best["id"] in claimed:
                wrong += 1
            else:
                claimed.add(best["id"])
                right += 1
            curve.append((right, right / (right + wrong)))

        def best_precision(reached: list[float]) -> float:
            return max(reached, default=0.0)

        if eleven:
            levels = [best_precision([p for r, p in curve if r / wanted >= k * 0.1]) for k in range(11)]
        else:
            levels = [best_precision([p for r, p in curve if r >= k]) for k in range(1, wanted + 1)]
        result[category["name"]] = sum(levels) / len(levels)
    return result


@settings(max_examples=150)
@given(small_sets(), st.sampled_from([0.25, 0.5, 1.0]), st.booleans(), st.booleans())
def test_voc_agrees_with_nested_loops(
    data: tuple[dict[str, Any], list[dict[str, Any]]], threshold: float, eleven: bool, plus_one: bool
) -> None:
    metrics = voc_average_precision(
        *data,
        iou_threshold=threshold,
        interpolation="11_point" if eleven else "every_point",
        plus_one=plus_one,
    )
    expected = nested_loop_voc(*data, threshold, eleven, float(plus_one))
    assert {name: n["AP"] for name, n in metrics["per_class"].items()} == pytest.approx(expected, abs=1e-12)
    mean = sum(expected.values()) / len(expected) if expected else -1
    assert metrics["mAP"] == pytest.approx(mean, abs=1e-12)

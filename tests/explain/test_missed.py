"""Which stage lost an object: each verdict on a scene made by hand, where the answer is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from deformable_detr.classification import SigmoidFocal, SoftmaxWithNoObject
from deformable_detr.data.formats import read_split
from deformable_detr.detections import ClassTable
from deformable_detr.errors import UserError
from deformable_detr.explain.missed import (
    Claims,
    Stage,
    Tally,
    Verdict,
    claims,
    missed_objects,
    verdicts,
)
from deformable_detr.inference.detector import Detector
from deformable_detr.inference.loading import new_checkpoint
from deformable_detr.inference.selection import Selection
from deformable_detr.inference.trace import QueryTraces, SamplingPoints, Trace
from deformable_detr.inference.tta import augmented
from deformable_detr.structures import Predictions
from tests.support.tiny import tiny_config

OBJECT = [100.0, 100.0, 140.0, 140.0]
NEAR = [104.0, 100.0, 144.0, 140.0]  # IoU 36/44 with OBJECT
SHIFTED = [120.0, 100.0, 160.0, 140.0]  # IoU 1/3
FAR = [300.0, 300.0, 340.0, 340.0]


def queries(*rows: tuple[list[float], list[float], float]) -> QueryTraces:
    """(box, scores, share of the weight inside OBJECT) per query; two layers, the second looks nowhere."""
    locations = np.full((len(rows), 2, 1, 1, 2, 2), 500.0)
    locations[:, 0, 0, 0, 0] = 120.0  # the centre of OBJECT
    weights = np.zeros((len(rows), 2, 1, 1, 2))
    weights[:, 0, 0, 0, 0] = [share for _, _, share in rows]
    weights[..., 1] = 1 - weights[..., 0]
    boxes = np.array([box for box, _, _ in rows])
    return QueryTraces(
        indices=np.arange(len(rows)),
        scores=np.array([scores for _, scores, _ in rows], dtype=np.float32),
        boxes_xyxy=np.stack([np.full_like(boxes, 7.0), boxes], axis=1),
        references=(),
        attention=SamplingPoints(locations, weights),
        proposals=None,
    )


def chosen(*thresholds: float) -> Selection:
    """Return the selection with these thresholds of two classes, or with the same one for both."""
    return Selection(np.broadcast_to(np.float32(thresholds), 2), ("star", "circle"), "made")


def judge(
    traces: QueryTraces,
    objects: list[list[float]] = [OBJECT],  # noqa: B006
    labels: list[int] = [0],  # noqa: B006
    threshold: float = 0.5,
    nms_iou: float | None = None,
) -> list[Verdict]:
    logits = torch.from_numpy(traces.scores).float().clamp(1e-6, 1 - 1e-6).logit()[None]
    trace = Trace(traces, None, Predictions(logits, torch.zeros(1, len(traces), 4)))
    claimed = claims(SigmoidFocal(traces.scores.shape[1]), trace, chosen(threshold), nms_iou)
    return verdicts(traces, claimed, np.array(objects), np.array(labels))


def test_found() -> None:
    (verdict,) = judge(queries((FAR, [0.9, 0.1], 1.0), (NEAR, [0.7, 0.1], 0.0)))
    assert verdict == Verdict(Stage.FOUND, 1.0, pytest.approx(36 / 44), 1, 0, pytest.approx(0.7))


def test_never_attended() -> None:
    (verdict,) = judge(queries((FAR, [0.1, 0.1], 0.2), (NEAR, [0.1, 0.6], 0.24)))
    assert verdict.stage is Stage.NEVER_ATTENDED
    assert (verdict.query, verdict.attention) == (1, pytest.approx(0.24))


def test_badly_placed() -> None:
    (verdict,) = judge(queries((FAR, [0.9, 0.1], 0.25), (SHIFTED, [0.9, 0.1], 0.0)))
    assert verdict.stage is Stage.BADLY_PLACED
    assert (verdict.query, verdict.iou) == (1, pytest.approx(1 / 3))


def test_wrong_class() -> None:
    (verdict,) = judge(queries((NEAR, [0.4, 0.9], 0.5), (FAR, [0.9, 0.1], 0.0)))
    assert verdict.stage is Stage.WRONG_CLASS
    assert (verdict.query, verdict.label, verdict.score) == (0, 1, pytest.approx(0.4))


def test_under_the_threshold() -> None:
    rows = (NEAR, [0.3, 0.2], 0.5), (NEAR, [0.4, 0.2], 0.5), (NEAR, [0.45, 0.9], 0.5)
    (verdict,) = judge(queries(*rows))
    assert verdict.stage is Stage.UNDER_THRESHOLD
    assert (verdict.query, verdict.score) == (1, pytest.approx(0.4))
    assert judge(queries(*rows), threshold=0.4)[0].stage is Stage.FOUND


def test_every_class_has_its_threshold() -> None:
    traces = queries((NEAR, [0.3, 0.2], 0.5), (FAR, [0.2, 0.3], 0.5))
    logits = torch.from_numpy(traces.scores).float().logit()[None]
    trace = Trace(traces, None, Predictions(logits, torch.zeros(1, 2, 4)))
    found = claims(SigmoidFocal(2), trace, chosen(0.25, 0.35))
    assert (found.queries.tolist(), found.labels.tolist()) == ([0], [0])


def test_lost_to_another_object() -> None:
    # One query for two objects: it fits the second one better.
    found = judge(queries((NEAR, [0.9, 0.1], 0.9)), [OBJECT, NEAR], [0, 0])
    assert [verdict.stage for verdict in found] == [Stage.LOST, Stage.FOUND]
    assert (found[0].query, found[0].taken_by) == (0, 1)


def test_the_order_is_the_objects_way_through_the_model() -> None:
    # Nothing is right about this query: the first stage that failed is named.
    assert judge(queries((FAR, [0.1, 0.2], 0.0)))[0].stage is Stage.NEVER_ATTENDED
    assert judge(queries((FAR, [0.1, 0.2], 0.5)))[0].stage is Stage.BADLY_PLACED
    assert judge(queries((NEAR, [0.1, 0.2], 0.5)))[0].stage is Stage.WRONG_CLASS
    assert judge(queries((NEAR, [0.2, 0.1], 0.5)))[0].stage is Stage.UNDER_THRESHOLD


def test_the_best_score_chooses_first_and_an_object_has_one_query() -> None:
    rows = (NEAR, [0.6, 0.1], 0.5), (OBJECT, [0.9, 0.1], 0.5), (FAR, [0.8, 0.1], 0.5)
    found = judge(queries(*rows), [OBJECT, FAR, OBJECT], [0, 0, 0])
    assert [(verdict.stage, verdict.query) for verdict in found] == [
        (Stage.FOUND, 0),  # the second best takes the object that is left; of equal ones COCO takes the last
        (Stage.FOUND, 2),
        (Stage.FOUND, 1),
    ]


def test_a_second_class_of_a_query_finds_objects_too() -> None:
    found = judge(queries((NEAR, [0.6, 0.9], 0.5)), [OBJECT, OBJECT], [0, 1])
    assert [verdict.stage for verdict in found] == [Stage.FOUND, Stage.FOUND]


def test_lost_to_suppression() -> None:
    """Two objects that overlap, each with a query of its own, and the better one suppresses the other."""
    aside, between = [118.0, 100.0, 158.0, 140.0], [108.0, 100.0, 148.0, 140.0]
    objects = [aside, OBJECT]
    traces = queries((aside, [0.9, 0.1], 1.0), (between, [0.8, 0.1], 1.0))
    assert [each.stage for each in judge(traces, objects, [0, 0])] == [Stage.FOUND, Stage.FOUND]
    assert [each.stage for each in judge(traces, objects, [0, 0], nms_iou=0.7)] == [Stage.FOUND] * 2
    first, second = judge(traces, objects, [0, 0], nms_iou=0.5)  # the boxes overlap by 30/50
    assert (first.stage, second.stage) == (Stage.FOUND, Stage.LOST)
    assert (second.query, second.taken_by) == (1, 0)


def test_no_objects() -> None:
    assert verdicts(queries((NEAR, [0.5], 1.0)), _none(), np.zeros((0, 4)), np.zeros(0, int)) == []


def _none() -> Claims:
    return Claims(np.zeros(0, int), np.zeros(0, int), np.zeros(0))


def test_claims_of_softmax_are_one_class_per_query() -> None:
    logits = torch.tensor([[[2.0, 1.9, -9.0], [0.0, 0.0, 5.0]]])
    scores = logits.softmax(-1)[0, :, :2].numpy()
    traces = queries((NEAR, list(scores[0]), 1.0), (FAR, list(scores[1]), 0.0))
    trace = Trace(traces, None, Predictions(logits, torch.zeros(1, 2, 4)))
    found = claims(SoftmaxWithNoObject(2), trace, chosen(0.3))
    assert (found.queries.tolist(), found.labels.tolist()) == ([0], [0])


# ---------------------------------------------------------------- a data set


def detector(names: tuple[str, ...]) -> Detector:
    torch.manual_seed(0)
    config = tiny_config()
    table = ClassTable.from_names(names)
    return Detector.of(new_checkpoint(config.model, table, config.data, config.recipe, None), "cpu")


def test_every_object_of_a_split_is_judged(tiny_data: Path) -> None:
    split = read_split(tiny_data, "val")
    subject = detector(("star", "circle"))  # other indices than the data's, and fewer
    selection = subject.selection(0.3)
    tally = Tally(subject, selection)
    for judged in missed_objects(subject, split, selection):
        assert len(judged.verdicts) == len(judged.numbers) == len(judged.labels)
        for number, label in zip(judged.numbers, judged.labels, strict=True):
            name = split.classes.names[judged.record.labels[number]]
            assert name == ("star", "circle")[label]
        tally.add(judged)
    report = tally.report()
    content = json.loads((tiny_data / "annotations" / "instances_val.json").read_text())
    ids = {row["id"]: row["name"] for row in content["categories"]}
    names = [ids[row["category_id"]] for row in content["annotations"] if not row.get("iscrowd")]
    known = sum(name in ("star", "circle") for name in names)
    assert report.images == 6
    assert (sum(report.stages.values()), report.unknown) == (known, len(names) - known)
    assert len(report.rows) == known - report.stages[Stage.FOUND]
    annotations = {row["id"]: row for row in content["annotations"]}
    for row in report.rows:
        x, y, w, h = annotations[row["annotation_id"]]["bbox"]
        np.testing.assert_allclose(row["box_xyxy"], [x, y, x + w, y + h], atol=0.01)
        assert row["category"] == ids[annotations[row["annotation_id"]]["category_id"]]
    assert json.loads(json.dumps(report.to_dict()))["stages"].keys() == {stage.value for stage in Stage}


def test_objects_are_judged_by_the_plain_model(tiny_data: Path) -> None:
    split, subject = read_split(tiny_data, "val"), detector(("star", "circle"))
    plain, views = (
        [judged.verdicts for judged in missed_objects(one, split, subject.selection(0.3))]
        for one in (subject, augmented(subject))
    )
    assert plain == views


def test_weights_that_are_not_finite_are_refused(tiny_data: Path) -> None:
    subject = detector(("star", "circle"))
    with torch.no_grad():
        next(subject.model.decoder.parameters()).fill_(torch.nan)
    with pytest.raises(UserError, match="not finite"):
        list(missed_objects(subject, read_split(tiny_data, "val"), subject.selection(0.3)))


def test_data_of_other_classes_are_refused(tiny_data: Path) -> None:
    with pytest.raises(UserError, match="no class in common"):
        list(missed_objects(detector(("cat",)), read_split(tiny_data, "val"), chosen(0.5)))

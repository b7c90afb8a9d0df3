"""The set loss, term by term: against transformers' losses, and against the formulas of
specification §4.5, §5.1, §5.2 written as loops over Python floats, where matching tries all permutations.
"""

from __future__ import annotations

import math
from itertools import permutations
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers.loss.loss_deformable_detr import DeformableDetrForObjectDetectionLoss
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss

from deformable_detr.classification import SigmoidFocal, SoftmaxWithNoObject
from deformable_detr.config import LossConfig
from deformable_detr.loss import Losses, SetCriterion
from deformable_detr.structures import BatchCount, DetectorOutput, Predictions, Target

NUM_CLASSES = 4
# The image in the middle has no objects, one has more than one of a class.
LABELS: tuple[list[int], ...] = ([2, 0, 2], [], [3])
# Unlike each other, so that no two can be swapped unseen; the class weight of transformers is fixed at 1.
SETTINGS = LossConfig(
    class_cost=1.5, box_cost=4.0, giou_cost=2.5, class_weight=1.0, box_weight=3.0, giou_weight=1.75
)


def random_predictions(num_queries: int, num_logits: int, seed: int) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(len(LABELS), num_queries, num_logits, generator=generator)
    boxes = 0.1 + 0.5 * torch.rand(len(LABELS), num_queries, 4, generator=generator)
    return Predictions(logits.requires_grad_(), boxes.requires_grad_())


def random_targets(labels: tuple[list[int], ...] = LABELS) -> list[Target]:
    generator = torch.Generator().manual_seed(99)
    return [
        Target(
            torch.tensor(image, dtype=torch.int64), 0.1 + 0.5 * torch.rand(len(image), 4, generator=generator)
        )
        for image in labels
    ]


SCHEMES = {"focal": SigmoidFocal(NUM_CLASSES, alpha=0.25), "softmax": SoftmaxWithNoObject(NUM_CLASSES, 0.1)}
THEIRS = {"focal": DeformableDetrForObjectDetectionLoss, "softmax": ForObjectDetectionLoss}


@pytest.mark.parametrize("labels", [LABELS, ([1], [0, 3], [2, 2, 2])], ids=["one empty image", "all full"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_transformers(scheme: str, labels: tuple[list[int], ...]) -> None:
    layers = tuple(random_predictions(20, SCHEMES[scheme].num_logits, seed) for seed in range(3))
    targets = random_targets(labels)
    ours = SetCriterion(SCHEMES[scheme], SETTINGS)(DetectorOutput(layers), targets)
    total, terms, _ = THEIRS[scheme](
        layers[-1].logits,
        [{"class_labels": target.labels, "boxes": target.boxes_cxcywh} for target in targets],
        torch.device("cpu"),
        layers[-1].boxes_cxcywh,
        SimpleNamespace(
            class_cost=SETTINGS.class_cost,
            bbox_cost=SETTINGS.box_cost,
            giou_cost=SETTINGS.giou_cost,
            bbox_loss_coefficient=SETTINGS.box_weight,
            giou_loss_coefficient=SETTINGS.giou_weight,
            num_labels=NUM_CLASSES,
            focal_alpha=0.25,
            eos_coefficient=0.1,
            auxiliary_loss=True,
            decoder_layers=len(layers),
        ),
        torch.stack([layer.logits for layer in layers]),
        torch.stack([layer.boxes_cxcywh for layer in layers]),
    )
    for suffix in ("", "_0", "_1"):
        for our_name, their_name in (("class", "loss_ce"), ("box", "loss_bbox"), ("giou", "loss_giou")):
            torch.testing.assert_close(
                ours.terms[our_name + suffix], terms[their_name + suffix].detach(), atol=1e-6, rtol=1e-5
            )
    assert len(ours.terms) == 9
    torch.testing.assert_close(ours.total, total, atol=1e-6, rtol=1e-5)

    parameters = [tensor for layer in layers for tensor in (layer.logits, layer.boxes_cxcywh)]
    found = torch.autograd.grad(ours.total, parameters)
    expected = torch.autograd.grad(total, parameters)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("num_queries", [5, 2], ids=["enough queries", "fewer queries than objects"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_loops(scheme: str, num_queries: int) -> None:
    layers = tuple(random_predictions(num_queries, SCHEMES[scheme].num_logits, seed) for seed in (5, 6))
    proposals = random_predictions(num_queries, SCHEMES[scheme].num_logits, 7)
    output = DetectorOutput(layers, proposals)
    targets = random_targets()
    assert_equal_losses(
        SetCriterion(SCHEMES[scheme], SETTINGS)(output, targets),
        [
            ("_0", looped_stage(scheme, layers[0], targets)),
            ("", looped_stage(scheme, layers[1], targets)),
            ("_proposals", looped_stage(scheme, proposals, targets, objects_only=True)),
        ],
    )


def test_an_update_of_empty_images() -> None:
    """Divided by one object: the loss of the background alone."""
    prediction = random_predictions(5, NUM_CLASSES, 5)
    targets = random_targets(([], [], []))
    losses = SetCriterion(SCHEMES["focal"], SETTINGS)(DetectorOutput((prediction,)), targets)
    assert_equal_losses(losses, [("", looped_stage("focal", prediction, targets))])
    assert losses.terms["box"] == losses.terms["giou"] == 0
    assert torch.isfinite(losses.total)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_losses_of_micro_batches_add_up(scheme: str) -> None:
    """An update may be cut into parts, which share what is divided by."""
    prediction, targets = random_predictions(5, SCHEMES[scheme].num_logits, 5), random_targets()
    criterion = SetCriterion(SCHEMES[scheme], SETTINGS)
    count = BatchCount.from_targets(targets, num_queries=5)
    parts = [
        criterion(
            DetectorOutput((Predictions(prediction.logits[i : i + 1], prediction.boxes_cxcywh[i : i + 1]),)),
            targets[i : i + 1],
            count,
        ).total
        for i in range(3)
    ]
    whole = criterion(DetectorOutput((prediction,)), targets).total
    torch.testing.assert_close(sum(parts), whole)


def test_without_auxiliary_losses_the_last_layer_and_the_proposals_remain() -> None:
    layers = tuple(random_predictions(5, NUM_CLASSES, seed) for seed in (5, 6))
    proposals = random_predictions(6, NUM_CLASSES, 7)
    settings = LossConfig(auxiliary=False)
    losses = SetCriterion(SCHEMES["focal"], settings)(DetectorOutput(layers, proposals), random_targets())
    assert set(losses.terms) == {
        f"{term}{stage}" for term in ("class", "box", "giou") for stage in ("", "_proposals")
    }


def assert_equal_losses(losses: Losses, stages: list[tuple[str, tuple[float, float, float]]]) -> None:
    expected_total = 0.0
    for suffix, (class_loss, box_loss, giou_loss) in stages:
        assert losses.terms[f"class{suffix}"].item() == pytest.approx(class_loss, rel=1e-5)
        assert losses.terms[f"box{suffix}"].item() == pytest.approx(box_loss, rel=1e-5)
        assert losses.terms[f"giou{suffix}"].item() == pytest.approx(giou_loss, rel=1e-5)
        expected_total += SETTINGS.class_weight * class_loss
        expected_total += SETTINGS.box_weight * box_loss + SETTINGS.giou_weight * giou_loss
    assert len(losses.terms) == 3 * len(stages)
    assert losses.total.item() == pytest.approx(expected_total, rel=1e-5)


def looped_stage(
    scheme: str, predictions: Predictions, targets: list[Target], *, objects_only: bool = False
) -> tuple[float, float, float]:
    """Class, box and GIoU loss of one layer. `objects_only`: all objects are of class 0."""
    num_objects = max(sum(len(target) for target in targets), 1)
    class_sum = class_weight = box_sum = giou_sum = 0.0
    for logits, boxes, target in zip(predictions.logits, predictions.boxes_cxcywh, targets, strict=True):
        rows, query_boxes, object_boxes = as_floats(logits), as_floats(boxes), as_floats(target.boxes_cxcywh)
        labels = [0] * len(target) if objects_only else target.labels.tolist()
        assigned = looped_matching(scheme, rows, query_boxes, labels, object_boxes)
        for query, row in enumerate(rows):
            label = labels[assigned[query]] if query in assigned else None
            if scheme == "focal":
                for index, logit in enumerate(row):
                    p = sigmoid(logit)
                    if index == label:
                        class_sum += 0.25 * (1 - p) ** 2 * -math.log(p)
                    else:
                        class_sum += 0.75 * p**2 * -math.log(1 - p)
            else:
                weight = 0.1 if label is None else 1.0
                class_sum += weight * -math.log(softmax(row)[NUM_CLASSES if label is None else label])
                class_weight += weight
        for query, index in assigned.items():
            box_sum += sum(abs(a - b) for a, b in zip(query_boxes[query], object_boxes[index], strict=True))
            giou_sum += 1 - giou(query_boxes[query], object_boxes[index])
    class_loss = class_sum / (num_objects if scheme == "focal" else class_weight)
    return class_loss, box_sum / num_objects, giou_sum / num_objects


def looped_matching(
    scheme: str,
    rows: list[list[float]],
    query_boxes: list[list[float]],
    labels: list[int],
    object_boxes: list[list[float]],
) -> dict[int, int]:
    """{query: object} of least total cost; where queries are fewer than objects, some objects go without."""

    def cost(query: int, index: int) -> float:
        if scheme == "focal":
            p = sigmoid(rows[query][labels[index]])
            class_cost = 0.25 * (1 - p) ** 2 * -math.log(p + 1e-8) - 0.75 * p**2 * -math.log(1 - p + 1e-8)
        else:
            class_cost = -softmax(rows[query])[labels[index]]
        box_cost = sum(abs(a - b) for a, b in zip(query_boxes[query], object_boxes[index], strict=True))
        return (
            SETTINGS.class_cost * class_cost
            + SETTINGS.box_cost * box_cost
            - SETTINGS.giou_cost * giou(query_boxes[query], object_boxes[index])
        )

    queries, objects = range(len(rows)), range(len(labels))
    if len(labels) <= len(rows):
        candidates = [
            dict(zip(chosen, objects, strict=True)) for chosen in permutations(queries, len(labels))
        ]
    else:
        candidates = [dict(zip(queries, chosen, strict=True)) for chosen in permutations(objects, len(rows))]
    return min(candidates, key=lambda pairs: sum(cost(query, index) for query, index in pairs.items()))


def as_floats(tensor: Tensor) -> list[list[float]]:
    return tensor.detach().double().tolist()


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def softmax(logits: list[float]) -> list[float]:
    total = sum(math.exp(logit) for logit in logits)
    return [math.exp(logit) / total for logit in logits]


def giou(a: list[float], b: list[float]) -> float:
    """Of two boxes (centre x, centre y, width, height)."""
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = (
        (x - w / 2, y - h / 2, x + w / 2, y + h / 2) for x, y, w, h in (a, b)
    )
    intersection = max(min(ax1, bx1) - max(ax0, bx0), 0) * max(min(ay1, by1) - max(ay0, by0), 0)
    union = (ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - intersection
    enclosing = (max(ax1, bx1) - min(ax0, bx0)) * (max(ay1, by1) - min(ay0, by0))
    return intersection / union - (enclosing - union) / enclosing

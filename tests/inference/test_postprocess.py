"""From hand-made logits and boxes to pixels (specification §7.1)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.ops import batched_nms

from deformable_detr.classification import SigmoidFocal, SoftmaxWithNoObject
from deformable_detr.detections import ClassTable
from deformable_detr.inference.postprocess import detections_of_queries, postprocess, unsuppressed

CLASSES = ClassTable(("cat", "dog"), (7, 3))


def logit(probability: float) -> float:
    return float(torch.logit(torch.tensor(probability)))


def test_boxes_are_in_pixels_of_each_original_image() -> None:
    logits = torch.full((2, 2, 2), -20.0)
    logits[0, 1, 0], logits[1, 0, 1] = logit(0.9), logit(0.8)
    boxes = torch.tensor(
        [[[0.1, 0.1, 0.1, 0.1], [0.5, 0.5, 0.5, 1.0]], [[0.25, 0.5, 0.1, 0.2], [0, 0, 0, 0]]]
    )
    tall, wide = postprocess(logits, boxes, SigmoidFocal(2), CLASSES, [(200, 100), (430, 1764)])
    np.testing.assert_allclose(tall.boxes_xyxy[0], [25, 0, 75, 200], atol=1e-4)
    np.testing.assert_allclose(wide.boxes_xyxy[0], [352.8, 172, 529.2, 258], rtol=1e-6)
    assert (tall.image_size, wide.image_size) == ((200, 100), (430, 1764))
    assert (tall.names[0], wide.names[0]) == ("cat", "dog")
    assert (tall.category_ids[0], wide.category_ids[0]) == (7, 3)
    np.testing.assert_allclose([tall.scores[0], wide.scores[0]], [0.9, 0.8], rtol=1e-6)


def test_nothing_is_clipped_to_the_image() -> None:
    (found,) = postprocess(
        torch.zeros(1, 1, 1), torch.tensor([[[0.0, 1.0, 1.0, 1.0]]]), SigmoidFocal(1),
        ClassTable.from_names(["a"]), [(10, 20)],
    )  # fmt: skip
    assert found.boxes_xyxy.tolist() == [[-10.0, 5.0, 10.0, 15.0]]


def test_a_query_may_be_found_as_several_classes_with_sigmoids_but_as_one_with_softmax() -> None:
    boxes = torch.full((1, 1, 4), 0.5)
    (found,) = postprocess(torch.tensor([[[2.0, 3.0]]]), boxes, SigmoidFocal(2), CLASSES, [(8, 8)])
    assert found.names == ("dog", "cat")
    scheme = SoftmaxWithNoObject(2)
    (found,) = postprocess(torch.tensor([[[2.0, 3.0, 9.0]]]), boxes, scheme, CLASSES, [(8, 8)])
    assert found.names == ("dog",)


@pytest.mark.parametrize("wanted", [1, 6, 7, 10_000])
def test_at_most_as_many_as_requested_and_available(wanted: int) -> None:
    logits = torch.randn(1, 3, 2, generator=torch.Generator().manual_seed(0))
    (found,) = postprocess(logits, torch.rand(1, 3, 4), SigmoidFocal(2), CLASSES, [(8, 8)], wanted)
    assert len(found) == min(wanted, 6)
    assert (np.diff(found.scores) <= 0).all()


def test_logits_that_no_class_uses_are_never_found() -> None:
    classes = ClassTable((None, "person", None), (0, 1, 2))
    (found,) = postprocess(
        torch.tensor([[[9.0, 1.0, 5.0]]]), torch.rand(1, 1, 4), SigmoidFocal(3), classes, [(8, 8)]
    )
    assert found.names == ("person",)
    (nothing,) = postprocess(
        torch.tensor([[[9.0, 1.0, 5.0]]]), torch.rand(1, 1, 4), SigmoidFocal(3), classes, [(8, 8)], 1
    )
    assert len(nothing) == 0
    assert nothing.boxes_xyxy.shape == (0, 4)


def test_types_are_as_documented_also_from_16_bit() -> None:
    (found,) = postprocess(
        torch.zeros(1, 2, 2, dtype=torch.bfloat16),
        torch.rand(1, 2, 4).to(torch.bfloat16),
        SigmoidFocal(2),
        CLASSES,
        [(8, 8)],
    )
    assert found.boxes_xyxy.dtype == found.scores.dtype == np.float32
    assert found.labels.dtype == found.category_ids.dtype == np.int64


def test_of_detections_that_overlap_nms_keeps_the_best_of_each_class() -> None:
    def score(cat: float, dog: float) -> list[float]:
        return [logit(cat), logit(dog)]

    logits = torch.tensor([[score(0.6, 0.01), score(0.9, 0.3), score(0.8, 0.02), score(0.7, 0.03)]])
    boxes = torch.tensor(
        [[[0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2], [0.5, 0.51, 0.2, 0.2], [0.2, 0.2, 0.2, 0.2]]]
    )

    def found(most: int, nms_iou: float | None) -> list[tuple[str, float]]:
        (detections,) = postprocess(logits, boxes, SigmoidFocal(2), CLASSES, [(100, 100)], most, nms_iou)
        return [(n, round(float(s), 2)) for n, s in zip(detections.names, detections.scores, strict=True)]

    assert found(5, None) == [("cat", 0.9), ("cat", 0.8), ("cat", 0.7), ("cat", 0.6), ("dog", 0.3)]
    assert found(5, 0.7)[:2] == [("cat", 0.9), ("cat", 0.7)]
    assert ("dog", 0.3) in found(8, 0.7)  # suppressed by its own class only
    assert found(5, 0.95) == found(5, None)[:1] + found(5, None)[1:3] + [("dog", 0.3)]
    assert len(found(2, 0.7)) == 2  # what is suppressed makes room


def test_detections_know_their_query() -> None:
    logits = torch.tensor([[[-1.0, -20.0], [3.0, -20.0], [2.0, -20.0]]])
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2], [0.2, 0.2, 0.2, 0.2]]])
    ((detections, queries),) = detections_of_queries(
        logits, boxes, SigmoidFocal(2), CLASSES, [(10, 10)], 3, 0.7
    )
    assert queries.tolist()[:2] == [1, 2]
    np.testing.assert_allclose(detections.scores, torch.sigmoid(logits[0, queries, detections.labels]))


@pytest.mark.parametrize("nms_iou", [0.0, 0.3, 0.7])
def test_suppression_is_torchvisions(nms_iou: float) -> None:
    generator = np.random.default_rng(0)
    corners = generator.uniform(0, 100, (200, 2))
    boxes = np.concatenate([corners, corners + generator.uniform(0, 60, (200, 2))], axis=1).astype(np.float32)
    boxes[7] = boxes[3]
    boxes[9, 2:] = boxes[9, :2]  # no area
    labels = generator.integers(0, 3, 200)
    scores = np.sort(generator.uniform(size=200).astype(np.float32))[::-1].copy()
    wanted = batched_nms(*map(torch.from_numpy, (boxes, scores, labels)), nms_iou)
    assert unsuppressed(boxes, labels, nms_iou).tolist() == wanted.tolist()
    assert unsuppressed(boxes[:0], labels[:0], nms_iou).tolist() == []

"""Boxes: against torchvision's functions and by properties."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou, generalized_box_iou

from deformable_detr.boxes import (
    cxcywh_to_xyxy,
    generalized_iou,
    inverse_sigmoid,
    iou,
    xyxy_to_cxcywh,
)


def random_boxes(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, 2, generator=generator, dtype=torch.float64)
    return torch.cat([corners.amin(1), corners.amax(1)], dim=1)


@given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 1000))
@settings(max_examples=40)
def test_overlaps_agree_with_torchvision(n: int, m: int, seed: int) -> None:
    a, b = random_boxes(n, seed), random_boxes(m, seed + 1)
    torch.testing.assert_close(iou(a[:, None], b), box_iou(a, b))
    torch.testing.assert_close(generalized_iou(a[:, None], b), generalized_box_iou(a, b))


@given(st.integers(1, 20), st.integers(0, 1000))
@settings(max_examples=40)
def test_conversions_are_inverse(count: int, seed: int) -> None:
    boxes = random_boxes(count, seed)
    torch.testing.assert_close(cxcywh_to_xyxy(xyxy_to_cxcywh(boxes)), boxes)


def test_overlap_of_a_box_with_itself_and_apart() -> None:
    box = torch.tensor([0.0, 0.0, 1.0, 1.0])
    far = torch.tensor([2.0, 0.0, 3.0, 1.0])
    assert generalized_iou(box, box) == 1
    # Union 2 in an enclosing box of 3: minus a third.
    torch.testing.assert_close(generalized_iou(box, far), torch.tensor(-1 / 3))


def test_boxes_without_area_have_finite_overlaps_and_gradients() -> None:
    point = torch.tensor([0.5, 0.5, 0.5, 0.5], requires_grad=True)
    overlap = generalized_iou(point, torch.tensor([0.5, 0.5, 0.5, 0.5]))
    overlap.backward()
    assert torch.isfinite(overlap)
    assert point.grad is not None
    assert torch.isfinite(point.grad).all()
    assert iou(point, point) == 0


def test_inverse_sigmoid() -> None:
    x = torch.linspace(0.001, 0.999, 50, dtype=torch.float64)
    torch.testing.assert_close(inverse_sigmoid(x).sigmoid(), x)
    assert inverse_sigmoid(torch.tensor(0.5)) == 0  # DETR's boxes rest on this being exact
    ends = inverse_sigmoid(torch.tensor([-1.0, 0.0, 1.0, 2.0]))
    torch.testing.assert_close(ends[:2], torch.full((2,), ends[0].item()))
    torch.testing.assert_close(ends, -ends.flip(0))
    assert torch.isfinite(ends).all()

"""Boxes: conversions, overlap, and the logits that the box heads use.

`_cxcywh`: centre and size, normalised by the image size. `_xyxy`: two corners. Shapes are (..., 4). Leading
axes broadcast, so that a function can compare boxes pair by pair, or all boxes of two sets with each other.
"""

from __future__ import annotations

import torch
from torch import Tensor


def coordinate_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype in which coordinates are computed: that of `tensor`, but at least float32."""
    return torch.promote_types(tensor.dtype, torch.float32)


def cxcywh_to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    centre, size = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:]
    return torch.cat([centre - 0.5 * size, centre + 0.5 * size], dim=-1)


def xyxy_to_cxcywh(boxes_xyxy: Tensor) -> Tensor:
    low, high = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def _area(boxes_xyxy: Tensor) -> Tensor:
    return (boxes_xyxy[..., 2] - boxes_xyxy[..., 0]) * (boxes_xyxy[..., 3] - boxes_xyxy[..., 1])


def _intersection_and_union(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    low = torch.maximum(a[..., :2], b[..., :2])
    high = torch.minimum(a[..., 2:], b[..., 2:])
    intersection = (high - low).clamp(min=0).prod(-1)
    return intersection, _area(a) + _area(b) - intersection


def iou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Return the intersection over union of broadcast boxes, in [0, 1]; 0 if both boxes are empty."""
    intersection, union = _intersection_and_union(a_xyxy, b_xyxy)
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)


def generalized_iou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Return the GIoU (Rezatofighi et al. 2019) of broadcast boxes, in [-1, 1].

    It is the IoU minus the fraction of the smallest enclosing box that neither box covers.
    """
    intersection, union = _intersection_and_union(a_xyxy, b_xyxy)
    low = torch.minimum(a_xyxy[..., :2], b_xyxy[..., :2])
    high = torch.maximum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    # Two boxes without area at the same point would give 0/0, and the NaN would reach every weight.
    tiny = torch.finfo(union.dtype).tiny
    enclosing = (high - low).prod(-1).clamp(min=tiny)
    return intersection / union.clamp(min=tiny) - (enclosing - union) / enclosing


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Return the logit of x in [0, 1], with x and 1 - x clamped to at least `eps` (specification §4.2).

    The logit of 0.5 is exactly 0.
    """
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))

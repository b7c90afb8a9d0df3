"""Test-time augmentation: a detector that looks at each picture several times, flipped and in several sizes,
and merges what it sees (paper, Table 3, last row).

Built outside of the model: a detector is given the views, so evaluate and predict take it as any other.

Merging. Detections of one class that overlap are one object: torchvision's non-maximum suppression finds its
best box; the box becomes the mean of all that were found for it, weighted by score, and the score the mean
over views of the best in each, where a view without it counts 0. The paper does not say how it merged.

Letters: N detections, V views.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import batched_nms, box_iou
from torchvision.transforms.v2 import functional as F

from ..data.transforms import evaluation_transform
from ..errors import UserError
from ..structures import Detections
from .detector import Detector, equal_shape_batches

SCALES = (0.8, 1.0, 1.2)
OVERLAP = 0.65  # IoU from which two boxes are of one object


@dataclass(frozen=True)
class View:
    """A picture's short side times `scale`; mirrored left to right if `flipped`."""

    scale: float
    flipped: bool

    def back(self, boxes_xyxy: np.ndarray, width: int) -> np.ndarray:
        """Boxes (N, 4) in pixels of a picture seen in this view, to those of the picture itself."""
        if not self.flipped:
            return boxes_xyxy
        x0, y0, x1, y1 = boxes_xyxy.T
        return np.stack([width - x1, y0, width - x0, y1], axis=-1)


def views_of(scales: Sequence[float] = SCALES, flip: bool = True) -> tuple[View, ...]:
    """Every scale, plain and, with `flip`, mirrored.

    Raises:
        UserError: no scale, one twice, or one that is not between 0.1 and 10.
    """
    if not scales or len(set(scales)) < len(scales) or not all(0.1 <= scale <= 10 for scale in scales):
        given = ", ".join(f"{scale:g}" for scale in scales)
        raise UserError(f"tta_scales must be different numbers from 0.1 to 10, not {given or 'none'}.")
    return tuple(
        View(scale, flipped) for scale in scales for flipped in ((False, True) if flip else (False,))
    )


class MergedViews:
    """Looks at each picture in several views of a detector, and merges what it sees in them.

    With one view that changes nothing, the result is the plain detector's.
    """

    def __init__(self, detector: Detector, views: Sequence[View], overlap: float = OVERLAP):
        if not 0 < overlap < 1:
            raise UserError(f"the overlap of detections to be merged must be between 0 and 1, not {overlap}.")
        self.plain = detector
        self.views = tuple(views)
        self.overlap = overlap
        self.transforms = {
            view.scale: evaluation_transform(
                replace(
                    detector.data,
                    image_size=max(32, round(detector.data.image_size * view.scale)),
                    max_size=max(32, round(detector.data.max_size * view.scale)),
                )
            )
            for view in self.views
        }

    def preprocess(self, picture: Image.Image) -> Tensor:
        """RGB picture to (3, H, W) uint8; `detect` resizes it for each view."""
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)

    def detect(
        self, pixels: Sequence[Tensor], original_sizes: Sequence[tuple[int, int]], max_detections: int
    ) -> list[Detections]:
        """Merged detections in pictures (3, H, W) uint8. In each view, pictures of equal shape share a batch;
        nothing is padded."""
        seen: list[list[Detections]] = [[] for _ in pixels]
        for view in self.views:
            for index, found in enumerate(self._look(view, pixels, original_sizes, max_detections)):
                width = original_sizes[index][1]
                seen[index].append(replace(found, boxes_xyxy=view.back(found.boxes_xyxy, width)))
        return [merge(found, self.overlap, max_detections) for found in seen]

    def _look(
        self,
        view: View,
        pixels: Sequence[Tensor],
        original_sizes: Sequence[tuple[int, int]],
        max_detections: int,
    ) -> list[Detections]:
        """Of each picture, in the coordinates of the view."""
        inputs = [self.transforms[view.scale](F.to_pil_image(picture)) for picture in pixels]
        if view.flipped:
            inputs = [picture.flip(-1) for picture in inputs]
        shapes = [(picture.shape[1], picture.shape[2]) for picture in inputs]
        results: dict[int, Detections] = {}
        for batch in equal_shape_batches(shapes, max(1, len(inputs))):
            sizes = [original_sizes[index] for index in batch]
            found = self.plain.detect([inputs[i] for i in batch], sizes, max_detections=max_detections)
            results.update(zip(batch, found, strict=True))
        return [results[index] for index in range(len(inputs))]


def tta_scales(tta: bool | Sequence[float]) -> tuple[float, ...]:
    """What the option `tta` asks for: none, the usual scales, or these."""
    if isinstance(tta, bool):
        return SCALES if tta else ()
    return tuple(tta)


def augmented(detector: Detector, scales: Sequence[float] = SCALES) -> Detector:
    """The detector with flips and these scales; it explains its detections as the plain one does."""
    return detector.augmented(MergedViews(detector, views_of(scales)))


def augmented_as_requested(detector: Detector, tta: bool | Sequence[float]) -> Detector:
    """The detector with what the option `tta` asks for, or itself if that is nothing."""
    scales = tta_scales(tta)
    return augmented(detector, scales) if scales else detector


def merge(views: Sequence[Detections], overlap: float = OVERLAP, max_detections: int = 100) -> Detections:
    """One picture's detections in V views, in the picture's coordinates, as one: best first.

    If there is only one view, it is left as it is: the model says each object once.
    """
    if len(views) == 1 or not any(map(len, views)):
        return views[0]
    every = Detections.concatenate(views)
    boxes, scores, labels = map(torch.from_numpy, (every.boxes_xyxy, every.scores, every.labels))
    numbers = torch.cat([torch.full((len(view),), number) for number, view in enumerate(views)])
    best = batched_nms(boxes, scores, labels, overlap)
    # (best, N): how much a detection overlaps with each of the best of its class; it belongs to the nearest.
    overlaps = box_iou(boxes[best], boxes).nan_to_num() * (labels[best][:, None] == labels[None])
    overlaps[torch.arange(len(best)), best] = 1.0  # a box without area, too, is itself
    nearest = overlaps.argmax(0)
    nearest[best] = torch.arange(len(best))  # also of two equal boxes, so thin that suppression missed it
    member = (nearest[None] == torch.arange(len(best))[:, None]) & (overlaps >= overlap)
    weights = member * scores
    merged = (weights @ boxes) / weights.sum(1, keepdim=True).clamp(min=1e-12)
    in_view = torch.stack([(weights * (numbers == number)).amax(1) for number in range(len(views))])
    confidence = in_view.mean(0)
    order = confidence.argsort(descending=True, stable=True)[:max_detections]
    return replace(
        every.take(best[order].numpy()), boxes_xyxy=merged[order].numpy(), scores=confidence[order].numpy()
    )

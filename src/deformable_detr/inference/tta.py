"""Test-time augmentation (paper, Table 3, last row).

Objects are detected in each picture and its mirror image at several sizes, and the detections are merged.
Augmentation is separate from the model: a detector with views can be evaluated and used like any other one.

Overlapping detections of one class are merged into one object. torchvision's non-maximum suppression finds
the best box of each object. The merged box is the mean of the object's boxes, weighted by score; its score
is the mean over the views of the best score in each, with 0 for a view without the object. The paper does not
specify its method.

Letters: N detections, V views, H and W height and width of a picture.
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

from ..data.evaluation_transform import evaluation_transform
from ..detections import Detections
from ..errors import UserError
from .detector import Detector, equal_shape_batches

SCALES = (0.8, 1.0, 1.2)
OVERLAP = 0.65  # minimum IoU of two boxes of one object


@dataclass(frozen=True)
class View:
    """A view of a picture, which is mirrored horizontally if `flipped`.

    The picture is resized as usual, but with the model's `image_size` and `max_size` multiplied by `scale`;
    neither becomes less than 32 pixels.
    """

    scale: float
    flipped: bool

    def back(self, boxes_xyxy: np.ndarray, width: int) -> np.ndarray:
        """Convert xyxy boxes (N, 4) from this view to the unflipped picture, which is `width` pixels wide.

        The boxes are in pixels of the picture before resizing.
        """
        if not self.flipped:
            return boxes_xyxy
        x0, y0, x1, y1 = boxes_xyxy.T
        return np.stack([width - x1, y0, width - x0, y1], axis=-1)


def views_of(scales: Sequence[float] = SCALES) -> tuple[View, ...]:
    """Return two views for each scale, of which the second is flipped.

    Raises:
        UserError: if there is no scale, or one is repeated or outside [0.1, 10].
    """
    if not scales or len(set(scales)) < len(scales) or not all(0.1 <= scale <= 10 for scale in scales):
        given = ", ".join(f"{scale:g}" for scale in scales)
        raise UserError(f"tta_scales must be different numbers from 0.1 to 10, not {given or 'none'}.")
    return tuple(View(scale, flipped) for scale in scales for flipped in (False, True))


class MergedViews:
    """An augmentation that detects objects in several views of each picture and merges the detections.

    With a single view of scale 1 that is not flipped, the result is that of the plain detector.
    """

    def __init__(self, detector: Detector, views: Sequence[View]):
        self.plain = detector.plain
        self.views = tuple(views)
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
        """Convert an RGB picture of H x W pixels to (3, H, W) uint8; `detect` resizes it for each view."""
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)

    def detect(
        self, pixels: Sequence[Tensor], original_sizes: Sequence[tuple[int, int]], max_detections: int
    ) -> list[Detections]:
        """Return at most `max_detections` merged detections in each picture (3, H, W) uint8, best first.

        `original_sizes` are the (H, W) of the pictures. In each view, at most `max_detections` objects are
        detected, and pictures of equal shape share a batch; nothing is padded.
        """
        by_picture: list[list[Detections]] = [[] for _ in pixels]
        for view in self.views:
            in_view = self._detect_in_view(view, pixels, original_sizes, max_detections)
            for index, detections in enumerate(in_view):
                boxes_xyxy = view.back(detections.boxes_xyxy, original_sizes[index][1])
                by_picture[index].append(replace(detections, boxes_xyxy=boxes_xyxy))
        return [merge(views, max_detections=max_detections) for views in by_picture]

    def _detect_in_view(
        self,
        view: View,
        pixels: Sequence[Tensor],
        original_sizes: Sequence[tuple[int, int]],
        max_detections: int,
    ) -> list[Detections]:
        """Return each picture's detections in pixels of the original, or of its mirror image if flipped."""
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
    """Return the scales for the option `tta`: none for False, SCALES for True, otherwise the listed ones."""
    if isinstance(tta, bool):
        return SCALES if tta else ()
    return tuple(tta)


def augmented(detector: Detector, scales: Sequence[float] = SCALES) -> Detector:
    """Return a detector that merges the detections in each picture and its mirror image at all `scales`.

    Each scale multiplies the size to which `detector` resizes pictures. Explanations are those of the plain
    detector.

    Raises:
        UserError: if there is no scale, or one is repeated or outside [0.1, 10].
    """
    return detector.augmented(MergedViews(detector, views_of(scales)))


def merge(views: Sequence[Detections], overlap: float = OVERLAP, max_detections: int = 100) -> Detections:
    """Merge the detections in V views of one picture, and return the best `max_detections`, best first.

    The boxes of all views must be in pixels of the picture; V is at least 1. A detection belongs to an object
    of its class if its IoU with the object's best box is at least `overlap`; if this is true of several
    objects, it belongs to the one with the highest IoU. A single view is returned unchanged, because the
    model predicts each object once. If no view has detections, the first view is returned.
    """
    if len(views) == 1 or not any(map(len, views)):
        return views[0]
    every = Detections.concatenate(views)
    boxes, scores, labels = map(torch.from_numpy, (every.boxes_xyxy, every.scores, every.labels))
    numbers = torch.cat([torch.full((len(view),), number) for number, view in enumerate(views)])
    best = batched_nms(boxes, scores, labels, overlap)
    # (best, N): the IoU of the best detections with all detections of the same class. Each detection belongs
    # to the best one that it overlaps most.
    overlaps = box_iou(boxes[best], boxes).nan_to_num() * (labels[best][:, None] == labels[None])
    overlaps[torch.arange(len(best)), best] = 1.0  # also for a box without area
    nearest = overlaps.argmax(0)
    nearest[best] = torch.arange(len(best))  # also if boxes are equal, but too thin to be suppressed
    member = (nearest[None] == torch.arange(len(best))[:, None]) & (overlaps >= overlap)
    weights = member * scores
    merged = (weights @ boxes) / weights.sum(1, keepdim=True).clamp(min=1e-12)
    in_view = torch.stack([(weights * (numbers == number)).amax(1) for number in range(len(views))])
    confidence = in_view.mean(0)
    order = confidence.argsort(descending=True, stable=True)[:max_detections]
    return replace(
        every.take(best[order].numpy()), boxes_xyxy=merged[order].numpy(), scores=confidence[order].numpy()
    )

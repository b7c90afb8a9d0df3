"""The data that the parts of a model exchange, and its losses, as plain dataclasses of tensors.

Letters: B batch, Q queries, S memory tokens, C channels, L levels, N objects of one image.
Points are (x, y) in [0, 1]; sizes are (H, W), height and width. A padding mask is True in the padding.
Names of boxes end in `_cxcywh` (normalised by the unpadded image) or `_xyxy` (pixels).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # Not imported when the program runs: exported models are used without PyTorch.
    import torch
    from torch import Tensor

SpatialShapes = tuple[tuple[int, int], ...]  # ((H, W), ...) of the feature levels, finest first


@dataclass(frozen=True)
class ImageBatch:
    """A batch of B images, zero-padded at the bottom and on the right to the largest height H and width W.

    `pixels`: (B, 3, H, W) float, normalised before they are padded, so that the padding has the mean colour.
    `mask`: (B, H, W) bool, True = padding.
    """

    pixels: Tensor
    mask: Tensor

    @classmethod
    def from_input(cls, images: ImageBatch | Tensor | Sequence[Tensor]) -> ImageBatch:
        """Return a batch of the normalised pictures that a caller passes to a model.

        Args:
            images: an `ImageBatch`; the pair of its tensors, (pixels, mask); a tensor of pictures of one
                size, (B, 3, H, W); or pictures of different sizes, each (3, H, W), which are padded here.

        Raises:
            ValueError: if there is no image, or if the images have other shapes or types.
        """
        import torch

        if isinstance(images, ImageBatch):
            return images
        if not isinstance(images, torch.Tensor) and len(images) == 2 and images[0].ndim == 4:
            pixels, mask = images
            if mask.dtype != torch.bool or mask.shape != (len(pixels), *pixels.shape[2:]):
                raise ValueError(
                    f"a mask of {tuple(pixels.shape)} pixels must be bool and (B, H, W), "
                    f"not {mask.dtype} {tuple(mask.shape)}"
                )
            return cls(pixels, mask)
        return cls.from_images(list(images))

    @classmethod
    def from_images(cls, images: Sequence[Tensor]) -> ImageBatch:
        """Pad normalised (3, H, W) float images to a common size (specification §1.6: no size divisor).

        Raises:
            ValueError: if there is no image, or if an image has another shape or type.
        """
        import torch

        if not images:
            raise ValueError("ImageBatch.from_images needs at least one image")
        for index, image in enumerate(images):
            if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point():
                raise ValueError(
                    f"image {index} must be a float tensor of shape (3, H, W), "
                    f"not {image.dtype} {tuple(image.shape)}"
                )
        height = max(image.shape[1] for image in images)
        width = max(image.shape[2] for image in images)
        pixels = images[0].new_zeros(len(images), 3, height, width)
        mask = torch.ones(len(images), height, width, dtype=torch.bool, device=pixels.device)
        for index, image in enumerate(images):
            _, h, w = image.shape
            pixels[index, :, :h, :w] = image
            mask[index, :h, :w] = False
        return cls(pixels, mask)

    def to(self, device: torch.device | str) -> ImageBatch:
        return ImageBatch(self.pixels.to(device, non_blocking=True), self.mask.to(device, non_blocking=True))

    def pin_memory(self) -> ImageBatch:
        """Return a copy in page-locked memory for fast copies to a GPU; PyTorch's data loader calls this."""
        return ImageBatch(self.pixels.pin_memory(), self.mask.pin_memory())

    def __len__(self) -> int:
        return self.pixels.shape[0]


@dataclass(frozen=True)
class FeatureBatch:
    """An `ImageBatch` after the backbone, with feature maps instead of pixels.

    `maps`: one feature map per level for B images, finest first, each (B, C, H, W) with the channels and the
    size of the level. `mask`: (B, H, W) bool, the padding of the images before the backbone, in pixels.
    """

    maps: tuple[Tensor, ...]
    mask: Tensor

    def to(self, device: torch.device | str) -> FeatureBatch:
        return FeatureBatch(
            tuple(level.to(device, non_blocking=True) for level in self.maps),
            self.mask.to(device, non_blocking=True),
        )

    def __len__(self) -> int:
        return self.mask.shape[0]


@dataclass(frozen=True)
class FeatureMemory:
    """The L feature levels of B images, flattened row by row to S tokens of C channels, finest level first.

    `tokens`: (B, S, C). `positions`: (B, S, C), the encodings of their positions. `mask`: (B, S), True =
    padding.
    `spatial_shapes`: ((H, W), ...), one pair of Python ints per level; S = Σ H·W.
    `valid_ratios`: (B, L, 2), the unpadded fraction of each level as (width, height).
    """

    tokens: Tensor
    positions: Tensor
    mask: Tensor
    spatial_shapes: SpatialShapes
    valid_ratios: Tensor

    def with_tokens(self, tokens: Tensor) -> FeatureMemory:
        return replace(self, tokens=tokens)


@dataclass(frozen=True)
class Predictions:
    """The output of one decoder layer for B images, with a row for each of Q queries.

    The output of the first stage has a row for each of S memory tokens instead.
    `logits`: (B, Q, number of logits). `boxes_cxcywh`: (B, Q, 4), in [0, 1] relative to the unpadded image.
    """

    logits: Tensor
    boxes_cxcywh: Tensor


@dataclass(frozen=True)
class Queries:
    """The decoder's input: Q queries with C channels for each of B images.

    `content`: (B, Q, C), the embeddings that the decoder's layers change. `positions`: (B, Q, C), the
    encodings that are added to them in attention. `references`: (B, Q, 2) points or (B, Q, 4) boxes, in
    [0, 1] relative to the unpadded image. Two-stage models also set `tokens` (B, Q), the index of the memory
    token that proposed each query, and, in training and explanations, `proposals`, the first stage's
    predictions for every memory token.
    """

    content: Tensor
    positions: Tensor
    references: Tensor
    proposals: Predictions | None = None
    tokens: Tensor | None = None


@dataclass(frozen=True)
class DetectorOutput:
    """The output of a model.

    `predictions`: one entry per decoder layer, in order. The last one is the result; the others are used for
    auxiliary losses. The fast model for CPUs computes only the last one.
    `proposals`: the first stage's predictions for all memory tokens; None in a one-stage model, and in
    inference with `BestProposals`.
    """

    predictions: tuple[Predictions, ...]
    proposals: Predictions | None = None


@dataclass(frozen=True)
class Target:
    """The N objects of one image, in the form that the losses use.

    `labels`: (N,) int64 class indices 0..num_classes-1. `boxes_cxcywh`: (N, 4), normalised by the
    unpadded image that the model sees. `image_id`: the name of the image in error messages.
    """

    labels: Tensor
    boxes_cxcywh: Tensor
    image_id: int | str = "?"

    def to(self, device: torch.device | str) -> Target:
        return Target(
            self.labels.to(device, non_blocking=True),
            self.boxes_cxcywh.to(device, non_blocking=True),
            self.image_id,
        )

    def pin_memory(self) -> Target:
        return Target(self.labels.pin_memory(), self.boxes_cxcywh.pin_memory(), self.image_id)

    def __len__(self) -> int:
        return self.labels.shape[0]


@dataclass(frozen=True)
class BatchCount:
    """The divisors of an update's losses, counted over all its micro-batches and processes.

    `objects`: the number of target boxes. `matched`: the number of queries that are matched to an object (at
    most Q per image). `images`: the number of images. Losses are divided by the share of one process
    (`share_of`), because gradients are averaged over processes.
    """

    objects: float
    matched: float
    images: float

    @classmethod
    def from_targets(cls, targets: Sequence[Target], num_queries: int) -> BatchCount:
        """Count the targets of a batch for a model with `num_queries` queries."""
        counts = [len(target) for target in targets]
        return cls(float(sum(counts)), float(sum(min(n, num_queries) for n in counts)), float(len(counts)))

    def __add__(self, other: BatchCount) -> BatchCount:
        return BatchCount(
            self.objects + other.objects, self.matched + other.matched, self.images + other.images
        )

    def share_of(self, num_processes: int) -> BatchCount:
        """Return the share of one process in this total over all processes.

        At least one object is counted in total, so that an update without objects does not divide by zero and
        the divisor does not depend on the number of processes.
        """
        return BatchCount(
            max(self.objects, 1.0) / num_processes, self.matched / num_processes, self.images / num_processes
        )

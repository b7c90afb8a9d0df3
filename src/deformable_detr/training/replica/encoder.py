"""The deformable encoder for training on a CPU: image by image, without the padding.

In the padded batches of a small data set, a fifth to a third of the memory tokens are padding. The plain
encoder computes them like all others, but their results are not used: their values are zero in every
attention, they cannot become queries, and every other step of a layer treats each token separately. So each
image passes through the layers alone, with its levels cropped to the unpadded part. The tokens, and the
gradients of the weights, are the same up to the order of sums; sampling outside a cropped level reads zero,
as it would in the padding. The intermediate results of one image also fit into the cache.

Letters: B batch, S memory tokens, N unpadded tokens of one image, C channels, H and W height and width of a
level, h and w those of its unpadded part.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...models.attention import DeformableAttention
from ...models.encoder import Encoder, EncoderLayer
from ...structures import FeatureMemory, SpatialShapes

ImageShapes = tuple[SpatialShapes, ...]  # the unpadded (h, w) of each level, one tuple per image


class UnpaddedEncoder(Encoder):
    """An `Encoder` that computes only unpadded tokens, with the same layers; tokens in the padding become 0.

    If the unpadded part of an image is not a rectangle at its top left, the batch is computed with padding.
    """

    @staticmethod
    def suits(encoder: Encoder) -> bool:
        """Return whether an `UnpaddedEncoder` with the layers of `encoder` would compute the same tokens.

        With dropout, it would not, because the masks would be drawn in another order. For subclasses of
        `Encoder` and `EncoderLayer`, and for other kinds of attention, the result is False too.
        """
        return type(encoder) is Encoder and all(
            type(layer) is EncoderLayer
            and type(layer.attention) is DeformableAttention
            and layer.dropout.p == 0
            for layer in encoder.layers
        )

    def forward(self, memory: FeatureMemory) -> FeatureMemory:
        shapes = _unpadded_shapes(memory)
        if shapes is None:
            return super().forward(memory)
        levels = memory.spatial_shapes
        tokens = _Crop.apply(memory.tokens, levels, shapes)
        positions = _Crop.apply(memory.positions, levels, shapes)
        encoded = [
            super(UnpaddedEncoder, self).forward(_memory_of(*image))
            for image in zip(tokens, positions, shapes, strict=True)
        ]
        return memory.with_tokens(_Pad.apply(levels, shapes, *(image.tokens for image in encoded)))


def _unpadded_shapes(memory: FeatureMemory) -> ImageShapes | None:
    """Return the (h, w) of the unpadded part of each level of each image.

    The result is None if any of these parts is not a rectangle at the top left.
    """
    sizes = []
    start = 0
    for height, width in memory.spatial_shapes:
        valid = ~memory.mask[:, start : start + height * width].view(-1, height, width)
        start += height * width
        inside = torch.stack([valid[:, :, 0].sum(1), valid[:, 0].sum(1)], dim=1)  # (B, 2)
        if not torch.equal(inside.prod(1), valid.sum((1, 2))):
            return None
        sizes.append(inside.tolist())
    return tuple(tuple((h, w) for h, w in image) for image in zip(*sizes, strict=True))


def _memory_of(tokens: Tensor, positions: Tensor, shapes: SpatialShapes) -> FeatureMemory:
    """Return the memory of one unpadded image from its tokens and positions (1, N, C)."""
    return FeatureMemory(
        tokens=tokens,
        positions=positions,
        mask=torch.zeros(tokens.shape[:2], dtype=torch.bool),
        spatial_shapes=shapes,
        valid_ratios=tokens.new_ones(1, len(shapes), 2),
    )


def _parts(
    padded: Tensor, levels: SpatialShapes, shapes: ImageShapes, images: tuple[Tensor, ...]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield two (h, w, C) views of the unpadded part of each level of each image.

    The first one is a view of `padded` (B, S, C), and the second one of the image's tokens (1, N, C).
    """
    C = padded.shape[-1]
    for row, (image, sizes) in enumerate(zip(images, shapes, strict=True)):
        start = first = 0
        for (height, width), (h, w) in zip(levels, sizes, strict=True):
            level = padded[row, start : start + height * width].view(height, width, C)
            yield level[:h, :w], image[0, first : first + h * w].view(h, w, C)
            start, first = start + height * width, first + h * w


def _cropped(padded: Tensor, levels: SpatialShapes, shapes: ImageShapes) -> tuple[Tensor, ...]:
    C = padded.shape[-1]
    images = tuple(padded.new_empty(1, sum(h * w for h, w in sizes), C) for sizes in shapes)
    for source, target in _parts(padded, levels, shapes, images):
        target.copy_(source)
    return images


def _padded(images: tuple[Tensor, ...], levels: SpatialShapes, shapes: ImageShapes) -> Tensor:
    C = images[0].shape[-1]
    padded = images[0].new_zeros(len(images), sum(h * w for h, w in levels), C)
    for target, source in _parts(padded, levels, shapes, images):
        target.copy_(source)
    return padded


class _Crop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, padded: Tensor, levels: SpatialShapes, shapes: ImageShapes) -> tuple[Tensor, ...]:
        ctx.sizes = levels, shapes
        return _cropped(padded, levels, shapes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _padded(tuple(grad.contiguous() for grad in grads), *ctx.sizes), None, None


class _Pad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, levels: SpatialShapes, shapes: ImageShapes, *images: Tensor) -> Tensor:
        ctx.sizes = levels, shapes
        return _padded(tuple(image.contiguous() for image in images), levels, shapes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return None, None, *_cropped(grad.contiguous(), *ctx.sizes)

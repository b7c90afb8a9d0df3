"""The structure of all models: pixels → maps → levels → memory → queries → predictions.

The model receives its parts from `build.py`. Its `forward` returns the same type in training and evaluation.
Letters: B batch, Q queries, S memory tokens, C channels, H and W height and width of a level or a picture.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..boxes import coordinate_dtype
from ..structures import DetectorOutput, FeatureBatch, FeatureMemory, ImageBatch, Queries, SpatialShapes
from .backbone import Backbone
from .decoder import Decoder
from .encoder import Encoder
from .nearest import resize_nearest


class DetectionModel(nn.Module):
    """A detection model, from pixels to predictions; `build_model` chooses its parts."""

    def __init__(
        self,
        backbone: Backbone,
        neck: nn.Module,
        position: nn.Module,
        encoder: Encoder,
        queries: nn.Module,
        decoder: Decoder,
    ):
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.position = position
        self.encoder = encoder
        self.queries = queries
        self.decoder = decoder

    def forward(self, images: ImageBatch | FeatureBatch | Tensor | Sequence[Tensor]) -> DetectorOutput:
        """Return the predictions of all decoder layers.

        Args:
            images: any input of `ImageBatch.from_input`: a padded batch, its pair (pixels, mask), normalised
                pictures of one size, (B, 3, H, W), or normalised (3, H, W) float tensors, which are padded
                here; or a `FeatureBatch`, for which the backbone is skipped.

        Returns:
            The predictions of each layer and, if the queries have them, the first stage's proposals. The
            predictions of the last layer are `.predictions[-1]`, with `.logits` (B, Q, num_logits) and
            `.boxes_cxcywh` (B, Q, 4), relative to the unpadded picture, for B pictures and Q queries.

        Raises:
            ValueError: if the images have other shapes or types.
        """
        memory = self.remember(images)
        return self.answer(self.queries(memory), memory)

    def remember(self, images: ImageBatch | FeatureBatch | Tensor | Sequence[Tensor]) -> FeatureMemory:
        """Return the encoder's output, with tokens (B, S, C), for any input of `forward`.

        Raises:
            ValueError: if the images have other shapes or types.
        """
        batch = images if isinstance(images, FeatureBatch) else ImageBatch.from_input(images)
        memory: FeatureMemory = self.encoder(self.embed(batch))
        return memory

    def answer(self, queries: Queries, memory: FeatureMemory) -> DetectorOutput:
        """Return the decoder's predictions for the queries, and the queries' proposals if they have any."""
        return DetectorOutput(self.decoder(queries, memory), queries.proposals)

    def embed(self, batch: ImageBatch | FeatureBatch) -> FeatureMemory:
        """Turn pixels or feature maps into the encoder's input: flattened levels with positions and masks."""
        maps = batch.maps if isinstance(batch, FeatureBatch) else self.backbone(batch.pixels)
        levels: list[Tensor] = self.neck(maps)
        shapes = tuple((level.shape[-2], level.shape[-1]) for level in levels)
        return self.locate(_flatten(levels), shapes, batch.mask)

    def locate(self, tokens: Tensor, spatial_shapes: SpatialShapes, image_mask: Tensor) -> FeatureMemory:
        """Return the memory of the S tokens (B, S, C) of B images, with positions, mask and valid ratios.

        Positions, mask and valid ratios depend only on the levels' sizes, `spatial_shapes`, and on the
        padding mask of the pixels, `image_mask` (B, H, W).
        """
        # Each level's mask is resized from the image's (specification §1.6), never from another level's.
        masks = [resize_nearest(image_mask, shape) for shape in spatial_shapes]
        return FeatureMemory(
            tokens=tokens,
            positions=_flatten(self.position(masks, coordinate_dtype(tokens))).to(tokens.dtype),
            mask=torch.cat([mask.flatten(1) for mask in masks], dim=1),
            spatial_shapes=spatial_shapes,
            valid_ratios=torch.stack([valid_ratio(mask, coordinate_dtype(tokens)) for mask in masks], dim=1),
        )


def _flatten(levels: Sequence[Tensor]) -> Tensor:
    """Flatten and concatenate levels (B, C, H, W) to tokens (B, S, C)."""
    return torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)


def valid_ratio(mask: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the unpadded fractions (width, height), (B, 2), of B padding masks (B, H, W)."""
    height, width = mask.shape[-2:]
    valid_height = (~mask.select(2, 0)).sum(1).to(dtype)
    valid_width = (~mask.select(1, 0)).sum(1).to(dtype)
    return torch.stack([valid_width / width, valid_height / height], dim=-1)


def copy_on_same_memory(model: DetectionModel) -> DetectionModel:
    """Return a copy of `model` whose modules are new, but whose tensors share the memory of the originals.

    Gradients are disabled for the copy's parameters. If a module or parameter of the copy is replaced,
    `model` does not change.
    """
    shared: dict[int, object] = {}
    for parameter in model.parameters():
        shared[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    for buffer in model.buffers():
        shared[id(buffer)] = buffer.detach()
    return copy.deepcopy(model, shared)

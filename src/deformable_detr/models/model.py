"""The one skeleton of all models: pixels → maps → levels → memory → queries → predictions.

It is handed its parts (`build.py` chooses them), and `forward` returns the same type in training and in
evaluation. Letters: B batch, S memory tokens, C channels, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..structures import DetectorOutput, FeatureMemory, ImageBatch
from .backbone import Backbone
from .decoder import Decoder
from .encoder import Encoder


class DetectionModel(nn.Module):
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

    def forward(self, images: ImageBatch | Sequence[Tensor]) -> DetectorOutput:
        """Detect objects.

        Args:
            images: a padded `ImageBatch`, or normalised (3, H, W) float tensors, which are padded here.

        Returns:
            `DetectorOutput`: `.predictions[-1].logits` (B, Q, num_logits) and `.boxes_cxcywh` (B, Q, 4).
        """
        batch = images if isinstance(images, ImageBatch) else ImageBatch.from_images(images)
        memory = self.encoder(self.embed(batch))
        queries = self.queries(memory)
        return DetectorOutput(self.decoder(queries, memory), queries.proposals)

    def embed(self, batch: ImageBatch) -> FeatureMemory:
        """Pixels to the encoder's input: feature levels flattened, with positions and masks."""
        levels: list[Tensor] = self.neck(self.backbone(batch.pixels))
        # Every level's mask from the image's own (spec.md §1), never from another level's.
        image_mask = batch.mask[:, None].float()
        masks = [F.interpolate(image_mask, size=level.shape[-2:])[:, 0].bool() for level in levels]
        positions = self.position(masks)
        return FeatureMemory(
            tokens=_flatten(levels),
            positions=_flatten(positions).to(levels[0].dtype),
            mask=torch.cat([mask.flatten(1) for mask in masks], dim=1),
            spatial_shapes=tuple((level.shape[-2], level.shape[-1]) for level in levels),
            valid_ratios=torch.stack([valid_ratio(mask) for mask in masks], dim=1),
        )


def _flatten(levels: Sequence[Tensor]) -> Tensor:
    """(B, C, H, W) per level to (B, S, C)."""
    return torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)


def valid_ratio(mask: Tensor) -> Tensor:
    """(B, H, W) padding mask to (B, 2): unpadded fraction of the width and of the height."""
    height, width = mask.shape[-2:]
    valid_height = (~mask[:, :, 0]).sum(1)
    valid_width = (~mask[:, 0, :]).sum(1)
    return torch.stack([valid_width / width, valid_height / height], dim=-1)

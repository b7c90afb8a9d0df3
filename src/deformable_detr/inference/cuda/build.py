"""Build the replica of a plain model for GPUs."""

from __future__ import annotations

from typing import Any

import torch

from ...models import DetectionModel, copy_on_same_memory
from ...models.queries import BestProposals, with_best_proposals
from ...structures import DetectorOutput, FeatureBatch, FeatureMemory, ImageBatch, Queries
from ..convolutions import fastest_layout, fold_norms, in_layout, keep_sampling_in_float32


class TypedModel(DetectionModel):
    """A model that converts the pixels to `dtype` and to the memory format `layout`.

    Backbone, neck and encoder hold their weights in `dtype`; `optimise` converts them. Queries, decoder and
    heads, which do a small part of the work, keep their weights in float32. If `dtype` is a 16-bit type,
    queries, decoder and heads compute under autocast, except for the choice of proposals.
    """

    def __init__(self, *, dtype: torch.dtype, layout: torch.memory_format, **parts: Any):
        super().__init__(**parts)
        self.dtype, self.layout = dtype, layout

    def forward(self, images: Any) -> DetectorOutput:
        """Return the output of the model, for any input of `ImageBatch.from_input`.

        If `dtype` is a 16-bit type, queries, decoder and heads run under autocast. The heads then receive the
        same number format as those of the plain model under autocast.

        Raises:
            ValueError: if the images have other shapes or types.
        """
        batch = ImageBatch.from_input(images)
        memory = self.encoder(self.embed(batch))
        # Autocast must not cache cast weights, because a CUDA graph would read them after they are freed.
        with torch.autocast(
            batch.pixels.device.type, self.dtype, enabled=self.dtype != torch.float32, cache_enabled=False
        ):
            queries = self.queries(memory)
            return DetectorOutput(self.decoder(queries, memory), queries.proposals)

    def embed(self, batch: ImageBatch | FeatureBatch) -> FeatureMemory:
        assert isinstance(batch, ImageBatch)
        pixels = batch.pixels.to(self.dtype, memory_format=self.layout)
        return super().embed(ImageBatch(pixels, batch.mask))


class Float32Proposals(BestProposals):
    """`BestProposals` in float32, even under autocast.

    In bfloat16, many tokens have equal scores, so the chosen tokens would differ from those in float32. The
    choice takes 0.5 % of the arithmetic of the whole model.
    """

    def forward(self, memory: FeatureMemory) -> Queries:
        with torch.autocast(memory.tokens.device.type, enabled=False):
            return super().forward(memory.with_tokens(memory.tokens.float()))


def optimise(model: DetectionModel, device: torch.device, dtype: torch.dtype) -> TypedModel:
    """Return a replica in evaluation mode whose last layer makes the same predictions, up to rounding.

    Backbone, neck and encoder compute in `dtype`. If `dtype` is a 16-bit type, queries, decoder and heads
    compute under autocast, except for the choice of proposals, which is in float32. Replicas of two-stage
    models do not compute the boxes of tokens that are not chosen. `device` determines the memory format.
    """
    model = copy_on_same_memory(model).eval()
    fold_norms(model.backbone)
    queries = with_best_proposals(model.queries)
    if dtype != torch.float32 and isinstance(queries, BestProposals):
        queries = Float32Proposals(queries.plain)
    layout = fastest_layout(model.backbone, device)
    replica = TypedModel(
        dtype=dtype,
        layout=layout,
        backbone=in_layout(model.backbone, layout),
        neck=in_layout(model.neck, layout),
        position=model.position,
        encoder=model.encoder,
        queries=queries,
        decoder=model.decoder,
    )
    if dtype != torch.float32:
        keep_sampling_in_float32(replica.backbone)
        for part in (replica.backbone, replica.neck, replica.encoder):
            part.to(dtype)
    return replica.eval()

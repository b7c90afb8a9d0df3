"""A cache of the tokens' positions, which depend only on the picture's size if nothing is padded.

Letters: B batch, S memory tokens, C channels, L levels.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...models import DetectionModel
from ...models.encoder import token_centres
from ...structures import FeatureBatch, FeatureMemory, ImageBatch, SpatialShapes

KEPT_SIZES = 4  # picture sizes; one takes 19 MB at 800x1066


@dataclass(frozen=True)
class LocatedMemory(FeatureMemory):
    """A memory that also contains the centres of its tokens and the tensor that the decoder samples.

    Attributes:
        centres: (B, S, L, 2) float32, each token's pixel centre (x, y) as a fraction of each padded level,
            for B images, S tokens and L levels.
        padded: True if the images have padding. If not, the tensors that depend only on the images' size (all
            but `tokens` and `sampled`) are computed for one image and expanded over the batch.
        sampled: the tensor that the decoder samples (see `SampledFirst`); None before the decoder.
    """

    centres: Tensor
    padded: bool
    sampled: Tensor | None = None


class LocatingModel(DetectionModel):
    """A model that converts pixels to channels_last and `dtype`, and caches positions by picture size.

    Batches with padding are not cached.
    """

    def __init__(self, *, dtype: torch.dtype, **parts: Any):
        super().__init__(**parts)
        self.dtype = dtype
        self._sizes = _RecentSizes(KEPT_SIZES)

    def embed(self, batch: ImageBatch | FeatureBatch) -> FeatureMemory:
        assert isinstance(batch, ImageBatch)
        pixels = batch.pixels.to(self.dtype, memory_format=torch.channels_last)
        return super().embed(ImageBatch(pixels, batch.mask))

    def locate(self, tokens: Tensor, spatial_shapes: SpatialShapes, image_mask: Tensor) -> FeatureMemory:
        if image_mask.any():
            return self._located(tokens, spatial_shapes, image_mask, padded=True)
        key = (tuple(image_mask.shape[1:]), spatial_shapes, tokens.dtype)
        known = self._sizes.get(key)
        if known is None:
            known = self._located(tokens[:1], spatial_shapes, image_mask[:1], padded=False)
            self._sizes.put(key, replace(known, tokens=tokens[:0]))
        B = len(tokens)
        return replace(
            known,
            tokens=tokens,
            positions=known.positions.expand(B, -1, -1),
            mask=known.mask.expand(B, -1),
            valid_ratios=known.valid_ratios.expand(B, -1, -1),
            centres=known.centres.expand(B, -1, -1, -1),
        )

    def _located(
        self, tokens: Tensor, spatial_shapes: SpatialShapes, image_mask: Tensor, padded: bool
    ) -> LocatedMemory:
        memory = super().locate(tokens, spatial_shapes, image_mask)
        centres = token_centres(memory)[:, :, None] * memory.valid_ratios[:, None]
        return LocatedMemory(**vars(memory), centres=centres, padded=padded)


class _RecentSizes:
    """A thread-safe cache of `LocatedMemory` objects without tokens, by picture size.

    Only the `limit` most recently used sizes are kept.
    """

    def __init__(self, limit: int):
        self._limit = limit
        self._memories: OrderedDict[object, LocatedMemory] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: object) -> LocatedMemory | None:
        with self._lock:
            if key in self._memories:
                self._memories.move_to_end(key)
            return self._memories.get(key)

    def put(self, key: object, memory: LocatedMemory) -> None:
        with self._lock:
            self._memories[key] = memory
            while len(self._memories) > self._limit:
                self._memories.popitem(last=False)

"""Build the optimised replica of a plain model. Only this module determines which parts are replaced."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from ...models import DetectionModel, copy_on_same_memory
from ...models.attention import DeformableAttention
from ...models.decoder import Decoder
from ...models.encoder import Encoder, EncoderLayer
from ...models.queries import FixedQueries, chooses_proposals
from ..convolutions import fold_norms, in_layout, keep_sampling_in_float32
from .decoder import LastLayerDecoder, SampledFirst
from .encoder import ChunkedEncoder, ChunkedEncoderLayer
from .group_norm import norm_groups_in_two_passes
from .memory import LocatingModel
from .queries import ChunkedProposals, ComputedQueries


def optimise(model: DetectionModel, dtype: torch.dtype) -> DetectionModel:
    """Return a replica in evaluation mode whose last layer makes the same predictions, up to rounding.

    Backbone, neck and encoder, which do most of the arithmetic, compute in `dtype`; queries, decoder and
    heads, which do a few percent of it, compute in float32.
    """
    model = copy_on_same_memory(model).eval()
    fold_norms(model.backbone)
    replica = LocatingModel(
        backbone=in_layout(model.backbone, torch.channels_last),
        neck=in_layout(model.neck, torch.channels_last),
        position=model.position,
        encoder=_encoder(model.encoder),
        queries=_queries(model.queries),
        decoder=_decoder(model.decoder),
        dtype=dtype,
    )
    if dtype == torch.float32:
        norm_groups_in_two_passes(replica.neck)
    else:
        keep_sampling_in_float32(replica.backbone)
    for part in (replica.backbone, replica.neck, replica.encoder):
        part.to(dtype)
    return replica.eval()


def _encoder(encoder: Encoder) -> Encoder:
    layers = [layer for layer in encoder.layers if type(layer) is EncoderLayer]
    if len(layers) < len(encoder.layers) or not _all_deformable(layer.attention for layer in layers):
        return encoder
    return ChunkedEncoder([ChunkedEncoderLayer(layer) for layer in layers])


def _queries(queries: nn.Module) -> nn.Module:
    if isinstance(queries, FixedQueries) and type(queries).forward is FixedQueries.forward:
        return ComputedQueries(queries)
    if chooses_proposals(queries):
        return ChunkedProposals(queries)
    return queries


def _decoder(decoder: Decoder) -> Decoder:
    if _all_deformable(layer.cross_attention for layer in decoder.layers):
        for layer in decoder.layers:
            layer.cross_attention = SampledFirst(layer.cross_attention)  # type: ignore[arg-type]
    return LastLayerDecoder(decoder)


def _all_deformable(attentions: Iterable[object]) -> bool:
    return all(type(attention) is DeformableAttention for attention in attentions)

"""From a plain model to its optimised twin: the only place that says which part is exchanged for which."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import nn

from ...models import DetectionModel
from ...models.attention import DeformableAttention
from ...models.decoder import Decoder
from ...models.encoder import Encoder, EncoderLayer
from ...models.queries import ProposalQueries, ReferencePointQueries, StaticQueries
from .convolutions import (
    centre_group_norms,
    fold_norms,
    in_channels_last,
    keep_sampling_in_float32,
)
from .decoder import LastLayerDecoder, SampledFirst
from .encoder import ChunkedEncoder, ChunkedEncoderLayer
from .memory import LocatingModel
from .queries import BestProposals, FixedQueries


def optimise(model: DetectionModel, dtype: torch.dtype) -> DetectionModel:
    """A model in evaluation mode that predicts the same (of all layers, the last one only).

    Backbone, neck and encoder, where the arithmetic is, compute in `dtype`; queries, decoder and heads, some
    hundredths of it, in float32.
    """
    model = copy_on_same_memory(model).eval()
    fold_norms(model.backbone)
    twin = LocatingModel(
        backbone=in_channels_last(model.backbone),
        neck=in_channels_last(model.neck),
        position=model.position,
        encoder=_encoder(model.encoder),
        queries=_queries(model.queries),
        decoder=_decoder(model.decoder),
        dtype=dtype,
    )
    if dtype == torch.float32:
        centre_group_norms(twin.neck)
    else:
        keep_sampling_in_float32(twin.backbone)
    for part in (twin.backbone, twin.neck, twin.encoder):
        part.to(dtype)
    return twin.eval()


def copy_on_same_memory(model: DetectionModel) -> DetectionModel:
    """New modules on the old tensors' memory: what is exchanged later replaces a module's own parameter."""
    shared: dict[int, object] = {}
    for parameter in model.parameters():
        shared[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    for buffer in model.buffers():
        shared[id(buffer)] = buffer.detach()
    return copy.deepcopy(model, shared)


def _encoder(encoder: Encoder) -> Encoder:
    layers = [layer for layer in encoder.layers if type(layer) is EncoderLayer]
    if len(layers) < len(encoder.layers) or not _all_deformable(layer.attention for layer in layers):
        return encoder
    return ChunkedEncoder([ChunkedEncoderLayer(layer) for layer in layers])


def _queries(queries: nn.Module) -> nn.Module:
    if type(queries) in (StaticQueries, ReferencePointQueries):
        return FixedQueries(queries)
    if type(queries) is ProposalQueries:
        return BestProposals(queries)
    return queries


def _decoder(decoder: Decoder) -> Decoder:
    if _all_deformable(layer.cross_attention for layer in decoder.layers):
        for layer in decoder.layers:
            layer.cross_attention = SampledFirst(layer.cross_attention)  # type: ignore[arg-type]
    return LastLayerDecoder(decoder)


def _all_deformable(attentions: Iterable[object]) -> bool:
    return all(type(attention) is DeformableAttention for attention in attentions)

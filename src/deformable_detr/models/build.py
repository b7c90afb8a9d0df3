"""Build a model from a `ModelConfig`. This is the only module that chooses a model's parts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import nn

from ..classification import build_classification
from ..config import ModelConfig, add_choice
from .attention import (
    DeformableAttention,
    DenseAttention,
    MemoryAttention,
    OwnLevelAttention,
    equal_shares,
    tokens_per_level,
)
from .backbone import build_backbone
from .decoder import Decoder, DecoderLayer
from .encoder import Encoder, EncoderLayer
from .feedforward import FeedForward
from .heads import PredictionHead
from .model import DetectionModel
from .neck import FPN, BiFPN, ChannelMapper, Projection
from .position import LevelPosition, SinePosition
from .queries import MixedQueries, ProposalQueries, ReferencePointQueries, StaticQueries


def build_model(config: ModelConfig) -> DetectionModel:
    """Build an untrained model in training mode, initialised as in the authors' code (specification §3.4).

    Raises:
        UserError: if timm has no such backbone, it has too few maps or does not support dilation, or its
            stages cannot be frozen.
    """
    backbone = build_backbone(config.backbone, num_maps=_num_maps(config))
    head = PredictionHead(config.hidden_dim, _num_logits(config))
    heads = [head, *(copy.deepcopy(head) for _ in range(_num_heads(config) - 1))]
    _initialise_heads(config, heads)
    model = DetectionModel(
        backbone=backbone,
        neck=_neck(config, backbone.channels),
        position=_position(config),
        encoder=Encoder(
            [
                EncoderLayer(
                    _attention(config, in_encoder=True), config.hidden_dim, config.ffn_dim, config.dropout
                )
                for _ in range(config.encoder_layers)
            ]
        ),
        queries=_QUERIES[config.queries](config, heads),
        decoder=Decoder(
            [
                DecoderLayer(
                    _attention(config, in_encoder=False),
                    config.hidden_dim,
                    config.num_heads,
                    config.ffn_dim,
                    config.dropout,
                )
                for _ in range(config.decoder_layers)
            ],
            heads=heads[: config.decoder_layers],  # the proposals' head is not the decoder's
            norm=nn.LayerNorm(config.hidden_dim) if config.decoder_norm else nn.Identity(),
            refine_references=config.refine_references,
        ),
    )
    for layers in (model.encoder.layers, model.decoder.layers):
        _start_with_equal_biases([layer.feedforward for layer in layers])  # type: ignore[misc]
    return model


@cache
def level_strides(config: ModelConfig) -> tuple[int, ...]:
    """Return the number of image pixels per cell along one axis, for each feature level, finest first.

    No weights are allocated.

    Raises:
        UserError: if timm has no such backbone, it has too few maps or does not support dilation, or its
            stages cannot be frozen.
    """
    with torch.device("meta"):
        strides = build_backbone(config.backbone, num_maps=_num_maps(config)).strides
    further = config.num_levels - len(strides)  # each by a convolution of stride 2 (neck.py)
    return (*strides, *(strides[-1] * 2**number for number in range(1, further + 1)))


def _num_maps(config: ModelConfig) -> int:
    return min(config.num_levels, 3)


def _num_logits(config: ModelConfig) -> int:
    return build_classification(config).num_logits


def _num_heads(config: ModelConfig) -> int:
    """Return the number of prediction heads.

    Without refinement, all decoder layers share one head. With refinement, each decoder layer has a head, and
    two-stage models have another one for the proposals.
    """
    if not config.refine_references:
        return 1
    return config.decoder_layers + config.two_stage


def _initialise_heads(config: ModelConfig, heads: list[PredictionHead]) -> None:
    class_bias = build_classification(config).initial_class_bias
    for index, head in enumerate(heads):
        if class_bias is not None:
            nn.init.constant_(head.class_head.bias, class_bias)
        if config.attention == "dense":
            continue  # DETR's boxes do not start from a reference
        # A box whose reference is a point starts small, with sides of sigmoid(-2) = 0.12 of the image; later
        # layers start from that size.
        starts_from_point = index == 0 and not config.two_stage
        head.start_at_reference(size_bias=-2.0 if starts_from_point else 0.0)


def _start_with_equal_biases(feedforwards: Sequence[FeedForward]) -> None:
    """Copy the biases of the first feed-forward network to the others.

    The authors' layers are copies of the first one, and only their matrices are initialised again.
    """
    with torch.no_grad():
        for feedforward in feedforwards[1:]:
            feedforward.linear1.bias.copy_(feedforwards[0].linear1.bias)
            feedforward.linear2.bias.copy_(feedforwards[0].linear2.bias)


def _neck(config: ModelConfig, channels: tuple[int, ...]) -> nn.Module:
    if config.neck == "projection":
        return Projection(channels, config.hidden_dim)
    necks = {"channel_mapper": ChannelMapper, "fpn": FPN, "bifpn": BiFPN}
    return necks[config.neck](channels, config.hidden_dim, config.num_levels)


def _position(config: ModelConfig) -> nn.Module:
    sine = SinePosition(config.hidden_dim, half_pixel=config.position == "sine_half_pixel")
    if config.attention == "dense":
        return sine
    return LevelPosition(sine, config.num_levels, config.hidden_dim)


def _attention(config: ModelConfig, in_encoder: bool) -> MemoryAttention:
    """Build the attention to the memory of one encoder or decoder layer."""
    if config.attention == "dense":
        return DenseAttention(config.hidden_dim, config.num_heads, config.dropout)
    if config.attention == "deformable_own_level":
        queries_per_level = tokens_per_level if in_encoder else equal_shares
        return OwnLevelAttention(config.hidden_dim, config.num_heads, config.num_points, queries_per_level)
    return DeformableAttention(config.hidden_dim, config.num_heads, config.num_levels, config.num_points)


QueriesBuilder = Callable[[ModelConfig, list[PredictionHead]], nn.Module]
_QUERIES: dict[str, QueriesBuilder] = {
    "static": lambda config, heads: StaticQueries(config.num_queries, config.hidden_dim),
    "reference_points": lambda config, heads: ReferencePointQueries(config.num_queries, config.hidden_dim),
    "proposals": lambda config, heads: ProposalQueries(
        config.num_queries, config.hidden_dim, heads[-1], config.mask_invalid_proposals
    ),
    "mixed": lambda config, heads: MixedQueries(
        config.num_queries, config.hidden_dim, heads[-1], config.mask_invalid_proposals
    ),
}


def register_queries(name: str, build: QueriesBuilder) -> None:
    """Make `model.queries=name` select object queries from outside the package, in this process.

    A checkpoint stores only the name, so register the queries before you load a checkpoint that uses them.

    Args:
        name: the value of `model.queries`.
        build: a function of the configuration and the decoder's prediction heads (one, or with refinement one
            per layer). It returns a module that maps a `FeatureMemory` to `Queries`.
    """
    add_choice("model.queries", name)
    _QUERIES[name] = build

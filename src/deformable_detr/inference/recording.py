"""The attention of one forward pass, recorded from outside with temporary hooks; the model does not change.

Letters: B batch, Q queries of an attention module, R recorded rows (object queries, or chosen tokens of the
encoder), M heads, L levels, K sampling points, S memory tokens, P places (points of the image). Points are
(x, y).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..models.attention import DeformableAttention, DenseAttention, OwnLevelAttention
from ..models.model import DetectionModel
from ..ops.reference import sampling_locations_of
from ..structures import DetectorOutput, FeatureMemory, ImageBatch, Queries


@dataclass(frozen=True)
class SampledLayer:
    """The sampling points and the attention weights of one deformable attention module.

    They belong to B images, R rows (object queries, or chosen tokens of the encoder), M heads, L levels
    and K points, which are (x, y).

    Attributes:
        references: (B, R, 2) points or (B, R, 4) cxcywh boxes, as fractions of the unpadded image.
        locations: (B, R, M, L, K, 2), the sampling points as fractions of each padded level; points outside
            [0, 1] are outside the level.
        weights: (B, R, M, L, K), with a sum of one over (L, K).
    """

    references: Tensor
    locations: Tensor
    weights: Tensor

    def of_image(self, valid_ratios: Tensor) -> Tensor:
        """Return the locations as fractions of the unpadded image, (B, R, M, L, K, 2).

        `valid_ratios` (B, L, 2) is the unpadded fraction of each level as (width, height).
        """
        return self.locations / valid_ratios[:, None, None, :, None, :]


@dataclass(frozen=True)
class DenseLayer:
    """The weights of one dense attention module, (B, R, M, S), which sum to one over the S memory tokens.

    The weights belong to B images, R rows (object queries, or chosen tokens of the encoder) and M heads.
    """

    weights: Tensor


LayerRecord = SampledLayer | DenseLayer


@dataclass(frozen=True)
class Recording:
    """The record of one forward pass.

    Attributes:
        output: the output of the model.
        memory, queries: the inputs of the decoder.
        decoder: one record per layer, with a row for each query.
        encoder: one record per layer, in which the L rows of each place (one per level) follow each other;
            empty without places.
        tokens: (B, P, L), the index of the token that covers each of P places on each of L levels.
    """

    output: DetectorOutput
    memory: FeatureMemory
    queries: Queries
    decoder: tuple[LayerRecord, ...]
    encoder: tuple[LayerRecord, ...]
    tokens: Tensor


@torch.no_grad()
def record(model: DetectionModel, batch: ImageBatch, places: Tensor | None = None) -> Recording:
    """Run the model in evaluation mode and record its attention, without gradients.

    Args:
        batch: the B images, on the device of the model.
        places: (P, 2), points (x, y) as fractions of the unpadded images; the encoder's attention is recorded
            for the tokens that cover them. None means that the encoder's attention is not recorded.

    Raises:
        TypeError: if the model has attention of a kind that cannot be recorded.
    """
    places = batch.pixels.new_zeros(0, 2) if places is None else places.to(batch.pixels)
    kept: dict[str, Any] = {}
    was_training = model.training
    with ExitStack() as hooks:
        hooks.callback(model.train, was_training)
        model.eval()

        def keep_memory(_: nn.Module, arguments: tuple[Any, ...], queries: Queries) -> None:
            kept["memory"], kept["queries"] = arguments[0], queries

        hooks.callback(model.queries.register_forward_hook(keep_memory).remove)
        decoder = [_watch(layer.cross_attention, None, hooks) for layer in model.decoder.layers]
        watched = model.encoder.layers if len(places) else ()
        encoder = [_watch(layer.attention, places, hooks) for layer in watched]
        output = model(batch)
    return Recording(
        output,
        kept["memory"],
        kept["queries"],
        tuple(watch.layer() for watch in decoder),
        tuple(watch.layer() for watch in encoder),
        tokens_at(kept["memory"], places),
    )


def tokens_at(memory: FeatureMemory, places: Tensor) -> Tensor:
    """Return the index of the memory token that covers each of P places on each of L levels, (B, P, L).

    `places` is (P, 2), with (x, y) as fractions of the unpadded image. A place on the right or bottom border,
    or outside the image, gets the nearest token of the unpadded image.
    """
    tokens, start = [], 0
    for level, (height, width) in enumerate(memory.spatial_shapes):
        valid = (
            memory.valid_ratios[:, level] * places.new_tensor([width, height])
        ).round()  # (B, 2) in tokens
        cells = (places * valid[:, None]).long().clamp(min=0)  # (B, P, 2)
        column, row = torch.minimum(cells, valid[:, None].long() - 1).unbind(-1)
        tokens.append(start + row * width + column)
        start += height * width
    return torch.stack(tokens, dim=-1)


def _watch(attention: Tensor | nn.Module, places: Tensor | None, hooks: ExitStack) -> _Watch:
    if isinstance(attention, DeformableAttention):
        return _DeformableWatch(attention, places, hooks)
    if isinstance(attention, OwnLevelAttention):
        return _OwnLevelWatch(attention, places, hooks)
    if isinstance(attention, DenseAttention):
        return _DenseWatch(attention, places, hooks)
    raise TypeError(f"attention of type {type(attention).__name__} cannot be recorded")


class _Watch(ABC):
    """Hooks on one attention module, which record the rows of the tokens at given places, or all rows."""

    @abstractmethod
    def layer(self) -> LayerRecord: ...


class _DeformableWatch(_Watch):
    def __init__(self, attention: DeformableAttention, places: Tensor | None, hooks: ExitStack):
        self.attention, self.places = attention, places
        self.arguments: list[tuple[Any, ...]] = []
        self.offsets: list[Tensor] = []
        self.logits: list[Tensor] = []
        hooks.callback(attention.register_forward_pre_hook(self._keep_arguments).remove)
        hooks.callback(attention.sampling_offsets.register_forward_hook(self._keep_offsets).remove)
        hooks.callback(attention.attention_weights.register_forward_hook(self._keep_logits).remove)

    def _keep_arguments(self, _: nn.Module, arguments: tuple[Any, ...]) -> None:
        _, _, references, memory = arguments
        self.arguments.append((_rows(references, memory, self.places), memory))

    def _keep_offsets(self, _: nn.Module, __: tuple[Any, ...], offsets: Tensor) -> None:
        self.offsets.append(_rows(offsets, self.arguments[-1][1], self.places).float())

    def _keep_logits(self, _: nn.Module, __: tuple[Any, ...], logits: Tensor) -> None:
        self.logits.append(_rows(logits, self.arguments[-1][1], self.places).float())

    def layer(self) -> SampledLayer:
        (record,) = self.calls()
        return record

    def calls(self) -> list[SampledLayer]:
        """Return one record for each call of the module in the forward pass, in order."""
        M, L, K = self.attention.num_heads, self.attention.num_levels, self.attention.num_points
        records = []
        for (references, memory), offsets, logits in zip(
            self.arguments, self.offsets, self.logits, strict=True
        ):
            B, R, _ = offsets.shape
            scale = memory.valid_ratios.repeat(1, 1, references.shape[-1] // 2)  # (B, L, 2|4)
            locations = sampling_locations_of(
                memory.spatial_shapes,
                references[:, :, None] * scale[:, None],
                offsets.view(B, R, M, L * K, 2),
                (K,) * L,
            )
            weights = logits.view(B, R, M, L * K).softmax(-1)
            records.append(
                SampledLayer(references, locations.view(B, R, M, L, K, 2), weights.view(B, R, M, L, K))
            )
        return records


class _OwnLevelWatch(_Watch):
    """Hooks on an `OwnLevelAttention`, which calls its inner module once for each level.

    In the record, a row has the weight 0 on all levels to which it does not attend.
    """

    def __init__(self, attention: OwnLevelAttention, places: Tensor | None, hooks: ExitStack):
        self.of_tokens = places is not None
        self.inner = _DeformableWatch(attention.attention, places, hooks)

    def layer(self) -> SampledLayer:
        calls = self.inner.calls()
        levels = []
        for level, call in enumerate(calls):
            weights = call.weights.new_zeros(*call.weights.shape[:3], len(calls), call.weights.shape[-1])
            weights[..., level, :] = call.weights[..., 0, :]
            locations = call.locations.expand(-1, -1, -1, len(calls), -1, -1)
            levels.append((call.references, locations, weights))
        # Rows of tokens have the levels of a place in sequence; rows of queries are grouped by level.
        join = _interleave if self.of_tokens else torch.cat
        return SampledLayer(*(join(parts, dim=1) for parts in zip(*levels, strict=True)))


def _interleave(tensors: Sequence[Tensor], dim: int) -> Tensor:
    return torch.stack(list(tensors), dim=dim + 1).flatten(dim, dim + 1)


class _DenseWatch(_Watch):
    """Hooks on a `DenseAttention` and its `nn.MultiheadAttention`, which returns weights only on request."""

    def __init__(self, attention: DenseAttention, places: Tensor | None, hooks: ExitStack):
        self.places = places
        self.memory: FeatureMemory | None = None
        self.weights = torch.empty(0)
        hooks.callback(attention.register_forward_pre_hook(self._keep_memory).remove)
        inner = attention.attention
        hooks.callback(inner.register_forward_pre_hook(self._ask, with_kwargs=True).remove)
        hooks.callback(inner.register_forward_hook(self._keep_weights).remove)

    def _keep_memory(self, _: nn.Module, arguments: tuple[Any, ...]) -> None:
        self.memory = arguments[3]

    @staticmethod
    def _ask(
        _: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return arguments, {**options, "need_weights": True, "average_attn_weights": False}

    def _keep_weights(self, _: nn.Module, __: tuple[Any, ...], result: tuple[Tensor, Tensor]) -> None:
        assert self.memory is not None
        self.weights = _rows(result[1].transpose(1, 2), self.memory, self.places).float()  # (B, R, M, S)

    def layer(self) -> DenseLayer:
        return DenseLayer(self.weights)


def _rows(values: Tensor, memory: FeatureMemory, places: Tensor | None) -> Tensor:
    """Return the rows of `values` (B, Q, …) for the tokens at `places` (P, 2), as (B, P·L, …).

    If `places` is None, all rows are returned. Rows are selected as soon as they are computed, because an
    encoder's full attention is too large to keep.
    """
    if places is None:
        return values
    tokens = tokens_at(memory, places).flatten(1)  # (B, P·L)
    return torch.stack([image[rows] for image, rows in zip(values, tokens, strict=True)])

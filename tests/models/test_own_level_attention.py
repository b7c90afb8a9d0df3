"""Own-level attention against attention to all levels in which the others' weights are masked."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from deformable_detr.config import BackboneConfig, ModelConfig
from deformable_detr.errors import UserError
from deformable_detr.models import build_model
from deformable_detr.models.attention import (
    DeformableAttention,
    OwnLevelAttention,
    equal_shares,
    tokens_per_level,
)
from deformable_detr.models.model import valid_ratio
from deformable_detr.ops.reference import fused_ms_deform_attn_reference
from deformable_detr.structures import FeatureMemory, ImageBatch

SHAPES = ((4, 6), (2, 3), (1, 2))
DIM, M, K = 32, 4, 3
L, S = len(SHAPES), sum(height * width for height, width in SHAPES)


def padded_memory() -> FeatureMemory:
    """Two pictures on three levels; the second one has padding on the right."""
    torch.manual_seed(0)
    masks = [torch.zeros(2, *shape, dtype=torch.bool) for shape in SHAPES]
    for mask in masks:
        mask[1, :, (mask.shape[2] + 1) // 2 :] = True
    return FeatureMemory(
        tokens=torch.randn(2, S, DIM),
        positions=torch.randn(2, S, DIM),
        mask=torch.cat([mask.flatten(1) for mask in masks], dim=1),
        spatial_shapes=SHAPES,
        valid_ratios=torch.stack([valid_ratio(mask) for mask in masks], dim=1),
    )


def masked_attention(
    inner: DeformableAttention,
    level_of_query: Tensor,
    query: Tensor,
    references: Tensor,
    memory: FeatureMemory,
) -> Tensor:
    """The oracle: all levels are sampled, but softmax sees -∞ for those that are not the query's own."""
    B, Q, _ = query.shape
    value = inner.value_projection(memory.tokens).masked_fill(memory.mask[..., None], 0.0)
    offsets = inner.sampling_offsets(query).view(B, Q, M, 1, K, 2).expand(-1, -1, -1, L, -1, -1)
    logits = inner.attention_weights(query).view(B, Q, M, 1, K).repeat(1, 1, 1, L, 1)
    others = torch.arange(L)[None, :] != level_of_query[:, None]  # (Q, L)
    logits = logits.masked_fill(others[None, :, None, :, None], -torch.inf)
    scale = memory.valid_ratios.repeat(1, 1, references.shape[-1] // 2)
    sampled = fused_ms_deform_attn_reference(
        value.unflatten(-1, (M, -1)),
        memory.spatial_shapes,
        references[:, :, None] * scale[:, None],
        offsets.reshape(B, Q, M, L * K, 2),
        logits.view(B, Q, M, L * K),
        (K,) * L,
    )
    return inner.output_projection(sampled)  # type: ignore[no-any-return]


@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("of_tokens", [True, False], ids=["encoder", "decoder"])
def test_own_level_attention_is_attention_with_the_other_levels_masked(
    of_tokens: bool, coordinates: int
) -> None:
    memory = padded_memory()
    split = tokens_per_level if of_tokens else equal_shares
    Q = S if of_tokens else 8
    attention = OwnLevelAttention(DIM, M, K, split)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    queries, positions = torch.randn(2, Q, DIM), torch.randn(2, Q, DIM)
    references = torch.rand(2, Q, coordinates)
    counts = [height * width for height, width in SHAPES] if of_tokens else [3, 3, 2]
    level_of_query = torch.repeat_interleave(torch.arange(L), torch.tensor(counts))

    found = attention(queries, positions, references, memory)
    expected = masked_attention(attention.attention, level_of_query, queries + positions, references, memory)
    torch.testing.assert_close(found, expected)


def test_shares_are_equal_and_go_from_fine_to_coarse() -> None:
    assert equal_shares(300, ((1, 1),) * 4) == [75, 75, 75, 75]
    assert equal_shares(10, ((1, 1),) * 4) == [3, 3, 2, 2]
    assert equal_shares(2, ((1, 1),) * 4) == [1, 1, 0, 0]


def test_fewer_queries_than_levels() -> None:
    attention = OwnLevelAttention(DIM, M, K, equal_shares)
    query = torch.randn(2, 2, DIM)
    assert attention(query, query, torch.rand(2, 2, 2), padded_memory()).shape == (2, 2, DIM)


def test_a_model_with_it_runs_and_every_parameter_learns() -> None:
    config = ModelConfig(
        num_classes=3,
        backbone=BackboneConfig("resnet18", trainable_layers=5),
        attention="deformable_own_level",
        num_queries=7,
        hidden_dim=32,
        num_heads=4,
        num_levels=4,
        num_points=1,
        encoder_layers=1,
        decoder_layers=1,
        ffn_dim=48,
    )
    model = build_model(config)
    output = model(ImageBatch.from_images([torch.randn(3, 64, 96)]))
    prediction = output.predictions[-1]
    assert prediction.logits.shape == (1, 7, 3)
    (prediction.logits.sum() + prediction.boxes_cxcywh.sum()).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    with pytest.raises(UserError, match=r"model\.queries=proposals takes its queries from any level"):
        replace(config, queries="proposals", refine_references=True)

"""The model as it is traced: the plain model's function, whatever it samples with. Computed eagerly here;
what engines make of it is in test_engines.py (slow)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deformable_detr.exporter.graph import Graph, SamePaddedConvolution
from deformable_detr.exporter.sampling import GatherAttention, GridSampleAttention
from deformable_detr.models.attention import DeformableAttention
from deformable_detr.structures import FeatureMemory, ImageBatch
from tests.support.small_models import random_checkpoint, randomise, small_config

RECIPES = (
    "detr_r50",
    "deformable_detr_r50_refine",
    "deformable_detr_r50_two_stage",
    "deformable_detr_r50_own_level",
    "deformable_detr_r50_plus",
    "deformable_detr_lite",
)


def batch(B: int, H: int, W: int, seed: int = 0) -> ImageBatch:
    """Random pixels; the last picture of several is padded to three quarters of each side."""
    pixels = torch.randn(B, 3, H, W, generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros(B, H, W, dtype=torch.bool)
    if B > 1:
        mask[-1, 3 * H // 4 :], mask[-1, :, 3 * W // 4 :] = True, True
    return ImageBatch(pixels.masked_fill(mask[:, None], 0.0), mask)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("operator", ["native", "grid_sample", "gather"])
@torch.no_grad()
def test_the_same_function(recipe: str, operator: str) -> None:
    model = random_checkpoint(small_config(recipe)).model.eval()
    graph = Graph(model, operator)
    for size in ((2, 97, 66), (1, 64, 80)):
        images = batch(*size)
        wanted = model(images).predictions[-1]
        logits, boxes = graph(images.pixels, images.mask)
        torch.testing.assert_close(logits, wanted.logits, atol=1e-4, rtol=0)
        torch.testing.assert_close(boxes, wanted.boxes_cxcywh, atol=2e-5, rtol=0)


@torch.no_grad()
def test_the_plain_model_stays_as_it_is() -> None:
    model = random_checkpoint(small_config("deformable_detr_lite")).model.train()
    before = {name: type(module) for name, module in model.named_modules()}
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    graph = Graph(model, "gather")
    assert {name: type(module) for name, module in model.named_modules()} == before
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert not graph.model.training


@pytest.mark.parametrize("standard", [GridSampleAttention, GatherAttention])
@pytest.mark.parametrize("coordinates", [2, 4])
@torch.no_grad()
def test_sampling_far_outside_and_on_the_border(standard: type, coordinates: int) -> None:
    attention = DeformableAttention(16, num_heads=2, num_levels=2, num_points=3)
    randomise(attention)
    attention.sampling_offsets.weight.mul_(30)  # many points leave the picture, some by far
    generator = torch.Generator().manual_seed(0)
    B, Q, shapes = 2, 11, ((5, 7), (1, 3))
    memory = FeatureMemory(
        tokens=torch.randn(B, 38, 16, generator=generator),
        positions=torch.zeros(B, 38, 16),
        mask=torch.rand(B, 38, generator=generator) < 0.2,
        spatial_shapes=shapes,
        valid_ratios=torch.tensor([[[1.0, 1.0], [1.0, 1.0]], [[0.6, 0.8], [1.0, 0.5]]]),
    )
    queries, positions = torch.randn(2, B, Q, 16, generator=generator)
    references = torch.rand(B, Q, coordinates, generator=generator)
    references[:, :4, :2] = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.5, 0.5]])
    wanted = attention(queries, positions, references, memory)
    found = standard(attention)(queries, positions, references, memory)
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=0)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_same_padding_is_timms(kernel: int, stride: int) -> None:
    layers = pytest.importorskip("timm.layers")
    theirs: nn.Module = layers.Conv2dSame(2, 4, kernel, stride)
    for size in ((8, 9), (9, 8), (7, 1)):
        x = torch.randn(1, 2, *size)
        torch.testing.assert_close(SamePaddedConvolution(theirs)(x), theirs(x))

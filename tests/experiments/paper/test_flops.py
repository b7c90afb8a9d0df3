"""Counted multiply-adds against the published ones, against the same models computed for real, and against
formulas written out (specification §9.1, §9.2)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from deformable_detr.config import BackboneConfig, DataConfig, recipe
from deformable_detr.data.formats import read_split
from deformable_detr.data.preprocessing import input_size
from deformable_detr.models import build_model
from deformable_detr.ops import DeformConv2d, fused_ms_deform_attn, native_available
from deformable_detr.ops.flop_formulas import REFERENCE_FORMULAS
from deformable_detr.ops.reference import fused_ms_deform_attn_reference
from experiments.paper.faster_rcnn import FasterRcnnRow
from experiments.paper.flops import (
    count_multiply_adds,
    mean_multiply_adds,
    multiply_adds_of_model,
    typical_sizes,
)
from experiments.paper.published import FASTER_RCNN
from tests.support.paths import data_set
from tests.support.small_models import small_config

PUBLISHED_GFLOPS = {
    "deformable_detr_r50": 173,
    "deformable_detr_r50_single_scale": 78,
    "deformable_detr_r50_single_scale_dc5": 128,
    "detr_r50": 86,
    "detr_r50_dc5": 187,
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "published"), PUBLISHED_GFLOPS.items())
def test_published_flops_on_coco_sizes(name: str, published: float) -> None:
    split = read_split(data_set("tiny_coco"), "val")
    run = recipe(name)
    counted = mean_multiply_adds(run.model, typical_sizes(split, run.data)) / 1e9
    assert counted == pytest.approx(published, rel=0.03)


@pytest.mark.parametrize("name", ["deformable_detr_r50", "detr_r50_dc5"])
def test_published_flops_at_the_mean_size_of_coco_pictures(name: str) -> None:
    # 800 x 1110: the mean area of tiny_coco's val
    counted = mean_multiply_adds(recipe(name).model, [(800, 1110)]) / 1e9
    assert counted == pytest.approx(PUBLISHED_GFLOPS[name], rel=0.03)


def test_faster_rcnn_is_counted_as_torchvision_counts_it() -> None:
    """torchvision's own number is for a picture of 800 x 800."""
    row = FasterRcnnRow("Faster R-CNN + FPN", "faster_rcnn_r50_fpn", 109, FASTER_RCNN)
    counted = row.multiply_adds(row.base(), [(800, 800)]) / 1e9
    documented = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["_ops"]
    assert documented == pytest.approx(134.4, abs=0.1)
    assert counted == pytest.approx(documented, rel=0.03)


@pytest.mark.parametrize("name", ["deformable_detr_r50", "detr_r50"])
def test_meta_tensors_count_what_real_ones_do(name: str) -> None:
    config = small_config(name, backbone=BackboneConfig("resnet18"))
    counted = mean_multiply_adds(config, [(64, 96)])
    with sdpa_kernel(SDPBackend.MATH):  # torch has no formula for the CPU's flash attention
        assert multiply_adds_of_model(build_model(config).eval().requires_grad_(False), (64, 96)) == counted
    assert counted > 0


@pytest.mark.skipif(not native_available(), reason="the native operator is not built here")
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_operator_counts_five_multiply_adds_for_a_sample(device: str) -> None:
    B, Q, M, D, K, shapes = 2, 5, 4, 8, 3, ((4, 6), (2, 3))
    value = torch.randn(B, 30, M, D, device=device, requires_grad=True)
    reference = torch.rand(B, Q, 2, 2, device=device)
    offsets = torch.randn(B, Q, M, 2, K, 2, device=device)
    logits = torch.randn(B, Q, M, 2 * K, device=device)
    samples = B * Q * M * 2 * K
    with FlopCounterMode(display=False) as counter:
        output = fused_ms_deform_attn(value, shapes, reference, offsets, logits)
    assert counter.get_total_flops() == 2 * 5 * samples * D
    with FlopCounterMode(display=False) as counter:
        output.sum().backward()
    assert counter.get_total_flops() == 2 * 2 * 5 * samples * D
    with FlopCounterMode(display=False, custom_mapping=REFERENCE_FORMULAS) as counter:
        fused_ms_deform_attn_reference(value, shapes, reference, offsets.flatten(3, 4), logits, (K, K))
    assert counter.get_total_flops() == 2 * 5 * samples * D


def test_deformable_convolution_counts_its_samples() -> None:
    layer = DeformConv2d(6, 10, 3, padding=1, groups=2)
    counted = count_multiply_adds(lambda: layer(torch.randn(2, 6, 5, 7)))
    places, taps = 2 * 5 * 7, 9
    beside = places * taps * 6 * (2 * taps + taps)  # the convolutions of offsets and modulation
    assert counted == places * taps * (10 * 3 + 5 * 6) + beside


def test_typical_sizes_have_the_mean_area_of_all() -> None:
    split, data = read_split(data_set("tiny_coco"), "val"), DataConfig()
    sizes = typical_sizes(split, data)
    assert len(sizes) == 8
    everything = [input_size(image.size, data) for image in split.images]
    mean = sum(height * width for height, width in everything) / len(everything)
    assert sum(height * width for height, width in sizes) / len(sizes) == pytest.approx(mean, rel=0.01)
    few = replace(split, images=split.images[:3])
    assert len(typical_sizes(few, data)) == 3

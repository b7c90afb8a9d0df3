"""Models of Hugging Face transformers with random weights in which every parameter matters."""

from __future__ import annotations

import os
import tempfile
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the libraries are imported, so before that

import torch
import transformers
from torch import nn

from deformable_detr.checkpoint import Checkpoint, load
from deformable_detr.structures import ImageBatch
from tests.support.small_models import randomise

RESNET18 = {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]}


def transformers_model(
    family: str, *, backbone: dict[str, Any] | None = None, timm: bool = False, seed: int = 0, **options: Any
) -> nn.Module:
    """Return a transformers model in evaluation mode, with weights far from their initialisation.

    Args:
        family: `detr` or `deformable_detr`.
        backbone: options of transformers' own ResNet; by default, it is a ResNet-50.
        timm: True for timm's ResNet-50 instead.
        options: options of the model's configuration.
    """
    stages = ["stage2", "stage3", "stage4"] if options.get("num_feature_levels", 4) > 1 else ["stage4"]
    if family == "detr":
        config_class, model_class = transformers.DetrConfig, transformers.DetrForObjectDetection
        stages = ["stage4"]
    else:
        config_class = transformers.DeformableDetrConfig
        model_class = transformers.DeformableDetrForObjectDetection
    if not timm:
        options["backbone_config"] = transformers.ResNetConfig(**(backbone or {}), out_features=stages)
    with torch.device("meta"):  # initialising what `randomise` overwrites takes seconds
        model = model_class(config_class(**options))
    model.to_empty(device="cpu").tie_weights()
    return randomise(model, seed).eval()


SMALL_SIZES = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_queries": 9,
    "num_labels": 5,
}


def small_transformers_model(family: str, *, timm: bool = False, seed: int = 0, **options: Any) -> nn.Module:
    """Return a small model: ResNet-18 (unless timm's), 32 channels, 2 + 3 layers, 9 queries, 5 classes."""
    sizes = SMALL_SIZES | ({"two_stage_num_proposals": 9} if options.get("two_stage") else {})
    return transformers_model(family, backbone=RESNET18, timm=timm, seed=seed, **(sizes | options))


def saved_and_loaded(model: nn.Module) -> Checkpoint:
    """Save a transformers model and load it with this package."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load(folder)


def unequal_images() -> ImageBatch:
    """Return a batch of two normalised images of different sizes, (117, 131) and (128, 101)."""
    generator = torch.Generator().manual_seed(7)
    sizes = ((117, 131), (128, 101))
    return ImageBatch.from_images([torch.randn(3, *size, generator=generator) for size in sizes])

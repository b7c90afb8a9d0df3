"""Models of Hugging Face transformers with random weights in which every parameter matters."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported, which reads it then

import torch
import transformers
from torch import nn

RESNET18 = {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]}


def transformers_model(family: str, *, backbone: dict | None = None, seed: int = 0, **options) -> nn.Module:
    """An evaluation-mode model of transformers with its own ResNet (ResNet-50 unless `backbone` says else),
    far from its initialisation.

    Args:
        family: `detr` or `deformable_detr`. options: of its configuration.
    """
    stages = ["stage2", "stage3", "stage4"] if options.get("num_feature_levels", 4) > 1 else ["stage4"]
    if family == "detr":
        config_class, model_class = transformers.DetrConfig, transformers.DetrForObjectDetection
        stages = ["stage4"]
    else:
        config_class = transformers.DeformableDetrConfig
        model_class = transformers.DeformableDetrForObjectDetection
    resnet = transformers.ResNetConfig(**(backbone or {}), out_features=stages)
    torch.manual_seed(seed)
    return stir(model_class(config_class(backbone_config=resnet, **options))).eval()


@torch.no_grad()
def stir(model: nn.Module) -> nn.Module:
    """Move all parameters and batch norm statistics away from zeros, ones and symmetry."""
    for name, parameter in model.named_parameters():
        if "sampling_offsets" in name:
            parameter += torch.randn_like(parameter) * (0.5 if parameter.ndim == 1 else 0.1)
        elif parameter.ndim == 1:
            parameter += torch.randn_like(parameter) * 0.1
        elif parameter.abs().max() < 0.2 and "backbone" not in name:
            parameter += torch.randn_like(parameter) * 0.05  # transformers starts its heads at almost nothing
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "bias")):
            buffer.copy_(torch.randn_like(buffer) * 0.1)
        elif name.endswith(("running_var", "weight")):
            # Small enough that residual blocks do not blow the features up.
            buffer.copy_(torch.rand_like(buffer) * 0.5 + (0.75 if name.endswith("running_var") else 0.25))
    return model


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


def small_transformers_model(family: str, *, seed: int = 0, **options) -> nn.Module:
    """The same in small: ResNet-18, 32 channels, 2 + 3 layers, 9 queries, 5 classes."""
    sizes = SMALL_SIZES | ({"two_stage_num_proposals": 9} if options.get("two_stage") else {})
    return transformers_model(family, backbone=RESNET18, seed=seed, **(sizes | options))


def unequal_images() -> tuple[torch.Tensor, torch.Tensor]:
    """Two normalised images of different sizes in one batch: pixels (2, 3, 128, 160), mask True = padding."""
    generator = torch.Generator().manual_seed(7)
    pixels = torch.randn(2, 3, 128, 160, generator=generator)
    mask = torch.zeros(2, 128, 160, dtype=torch.bool)
    mask[0, :, 131:] = True
    mask[1, 97:, :] = True
    return pixels.masked_fill(mask[:, None], 0.0), mask

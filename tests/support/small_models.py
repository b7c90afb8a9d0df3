"""Small models of ours, and random weights in which every parameter matters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from deformable_detr.checkpoint import Checkpoint, class_table_for
from deformable_detr.checkpoint.contents import closest_recipe, empty_model
from deformable_detr.config import BackboneConfig, DataConfig, ModelConfig, recipe
from deformable_detr.detections import ClassTable


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Set random weights and batch norm statistics that keep signals at unit size.

    There are no zeros, ones or symmetries, so that every parameter matters.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: torch.Tensor, mean: float, std: float) -> None:
        tensor.normal_(mean, std, generator=generator)

    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif name in LEARNED_EMBEDDINGS or name.endswith("sampling_offsets.bias"):
            normal(tensor, 0.0, 1.0)
        elif name.endswith(("encoder_attn.q_proj.weight", "encoder_attn.k_proj.weight")):
            normal(tensor, 0.0, 4.0 * len(tensor) ** -0.5)  # DETR's, which must prefer some tokens
        elif name.endswith("sampling_offsets.weight"):
            normal(tensor, 0.0, 0.3 * tensor.shape[1] ** -0.5)  # a third of a pixel, besides the bias
        elif tensor.ndim > 1:
            normal(tensor, 0.0, (tensor.numel() / len(tensor)) ** -0.5)
        elif name.endswith(("weight", "weights")):  # of a norm, or of a BiFPN, which ignores negative ones
            normal(tensor, 1.0, 0.1)
        else:
            normal(tensor, 0.0, 0.1)
    return model


LEARNED_EMBEDDINGS = (
    "model.query_position_embeddings.weight",
    "model.level_embed",
    "queries.positions",
    "queries.content",
    "position.level_embedding",
)


def random_checkpoint(config: ModelConfig, classes: ClassTable | None = None) -> Checkpoint:
    """Return a native checkpoint with random weights."""
    return Checkpoint(
        model=randomise(empty_model(config)),
        config=config,
        classes=classes or class_table_for(config.num_classes),
        data=DataConfig(),
        recipe=closest_recipe(config),
    )


def assert_same_weights(found: nn.Module, expected: nn.Module) -> None:
    """Assert that two models are equal bit by bit."""
    found_state, expected_state = found.state_dict(), expected.state_dict()
    assert found_state.keys() == expected_state.keys()
    different = [name for name, value in expected_state.items() if not torch.equal(found_state[name], value)]
    assert not different


def small_config(recipe_name: str, **changes: Any) -> ModelConfig:
    """Return a small version of a recipe's model: 32 channels, 1 + 2 layers, 7 queries, 5 classes.

    Two-stage models keep their 256 channels, which the authors' code requires.
    """
    base = recipe(recipe_name).model
    small = {
        "num_classes": 5,
        "num_queries": 7,
        "hidden_dim": 256 if base.queries == "proposals" else 32,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "ffn_dim": 48,
    }
    return replace(base, **(small | changes))


def smallest_detr(**changes: Any) -> ModelConfig:
    """Return the model that is fastest to write and read: DETR on a ResNet-18."""
    return small_config("detr_r50", backbone=BackboneConfig("resnet18"), **changes)

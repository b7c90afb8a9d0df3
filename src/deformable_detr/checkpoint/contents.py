"""What a checkpoint holds, whatever its layout on disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import TORCHVISION_RESNETS, DataConfig, ModelConfig
from ..models import DetectionModel, build_model
from ..recipes import RECIPES
from ..structures import ClassTable


@dataclass(frozen=True)
class Checkpoint:
    """A model and all that is needed to use it.

    `config`: what `model` was built from. `classes`: one entry per class of the model.
    `data`: preprocessing. `recipe`: the name of the recipe that the model comes from, or for foreign
    checkpoints the one that it is closest to; always a name in `recipes.RECIPES`.
    """

    model: DetectionModel
    config: ModelConfig
    classes: ClassTable
    data: DataConfig
    recipe: str


def model_with_state(config: ModelConfig, state: Mapping[str, Tensor]) -> DetectionModel:
    """The model of `config` with the weights `state` (all keys, right shapes), in evaluation mode."""
    model = _uninitialised_model(config)
    model.load_state_dict(state)
    return model.eval()


def _uninitialised_model(config: ModelConfig) -> DetectionModel:
    if config.backbone.name not in TORCHVISION_RESNETS:
        return build_model(config)  # timm's models may keep tensors outside of their state
    # Random numbers for 40 million weights that are overwritten next take most of a second.
    with torch.device("meta"):
        model = build_model(config)
    return model.to_empty(device="cpu")


def expected_shapes(config: ModelConfig) -> dict[str, torch.Size]:
    """Name and shape of every tensor of the model of `config`."""
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in build_model(config).state_dict().items()}


def closest_recipe(config: ModelConfig) -> str:
    """The recipe whose model differs from `config` in the fewest fields; class and query counts don't count."""

    def distance(name: str) -> int:
        theirs = dataclasses.replace(
            RECIPES[name]().model, num_classes=config.num_classes, num_queries=config.num_queries
        )
        fields = [item.name for item in dataclasses.fields(ModelConfig)]
        return sum(getattr(theirs, field) != getattr(config, field) for field in fields)

    return min(RECIPES, key=distance)

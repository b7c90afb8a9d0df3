"""DETR and Deformable DETR, as other projects define them, as fields of `ModelConfig` (specification §4.5).

The functions of this module check whether a checkpoint of these projects can express a model, and infer the
remaining fields from the projects' files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from ..config import TORCHVISION_RESNETS, ModelConfig
from ..errors import UserError
from ..models.backbone import ResNet
from .initialisation import no_random_weights
from .naming import torchvision_key

Family = Literal["detr", "deformable_detr"]

FAMILIES: dict[Family, dict[str, Any]] = {
    "detr": {
        "neck": "projection",
        "position": "sine",
        "attention": "dense",
        "queries": "static",
        "classification": "softmax",
        "decoder_norm": True,
        "refine_references": False,
    },
    "deformable_detr": {
        "neck": "channel_mapper",
        "position": "sine_half_pixel",
        "attention": "deformable",
        "classification": "sigmoid_focal",
        "decoder_norm": False,
    },
}


def family_of(config: ModelConfig, project: str) -> Family:
    """Check that a checkpoint of `project` can express the model of `config`, and return its architecture.

    Raises:
        UserError: if a checkpoint of `project` cannot express the model; the message names the field.
    """
    family: Family = "detr" if config.attention == "dense" else "deformable_detr"
    name = {"detr": "DETR", "deformable_detr": "Deformable DETR"}[family]
    for field, value in FAMILIES[family].items():
        if getattr(config, field) != value:
            raise inexpressible(project, field, getattr(config, field), f"its {name} has {value}")
    if config.backbone.name not in TORCHVISION_RESNETS:
        raise inexpressible(project, "backbone.name", config.backbone.name, "it must be a ResNet")
    if stages := config.backbone.deformable_stages:
        raise inexpressible(project, "backbone.deformable_stages", list(stages), "its ResNets have none")
    if config.num_levels == 2:
        raise inexpressible(project, "num_levels", 2, f"its {name} has 1 level, or 3 and more")
    if family == "deformable_detr" and config.hidden_dim % 32:
        raise inexpressible(project, "hidden_dim", config.hidden_dim, "it must be divisible by 32")
    if config.queries == "mixed":
        raise inexpressible(project, "queries", "mixed", "it makes the content of queries from boxes")
    if config.two_stage and config.mask_invalid_proposals:
        raise inexpressible(project, "mask_invalid_proposals", True, "its first stage masks no proposals")
    return family


def inexpressible(project: str, field: str, value: object, reason: str) -> UserError:
    """Return the error for a model that a checkpoint of `project` cannot express because of `field`."""
    return UserError(
        f"model.{field}={value} cannot be written as a checkpoint of {project} ({reason}): such a model can "
        "only be kept in the native format."
    )


def is_state_dict(content: object) -> bool:
    """Return whether `content` is a dict that maps names to tensors, none of them sparse or without data."""
    return isinstance(content, dict) and all(
        isinstance(name, str)
        and isinstance(value, Tensor)
        and value.layout is torch.strided
        and not value.is_meta
        for name, value in content.items()
    )


def without_batch_counts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors without batch counters, which exist only in models with trainable batch norm."""
    return {name: tensor for name, tensor in state.items() if not name.endswith(".num_batches_tracked")}


def count(names: Iterable[str], prefix: str) -> int:
    """Return the number of modules in the module list at the path `prefix`, from a model's tensor `names`.

    The number is one more than the largest index in the names, or 0 if no name belongs to the list.
    """
    indices = [re.match(rf"{re.escape(prefix)}\.(\d+)\.", name) for name in names]
    return max((int(match[1]) + 1 for match in indices if match), default=0)


def matrix_shape(state: Mapping[str, Tensor], name: str) -> tuple[int, int]:
    """Return (rows, columns) of the matrix `name`, from which sizes are inferred.

    Raises:
        UserError: if there is no such matrix.
    """
    if name not in state or state[name].ndim != 2:
        raise UserError(f"there is no matrix {name}: the file is damaged, or of an unsupported variant.")
    rows, columns = state[name].shape
    return rows, columns


def points_of(attention_weights: int, num_heads: object, num_levels: int) -> int:
    """Return the number of sampling points K of each head in each level.

    Letters: M heads (`num_heads`), L levels (`num_levels`).

    Args:
        attention_weights: the number M·L·K of attention weights per query.

    Raises:
        UserError: if M is not a positive integer, or `attention_weights` is not a multiple of M·L.
    """
    if not isinstance(num_heads, int) or num_heads < 1 or attention_weights % (num_heads * num_levels):
        raise UserError(
            f"a query has {attention_weights} attention weights, not a multiple of {num_heads} heads "
            f"x {num_levels} levels: the number of heads that the file states, or the default of 8, is wrong."
        )
    return attention_weights // (num_heads * num_levels)


def resnet_of(shapes: Mapping[str, torch.Size]) -> str:
    """Return the name of the ResNet whose tensors have these shapes.

    Args:
        shapes: the shapes of all tensors except those of the classifier (`fc`), by torchvision's names.

    Raises:
        UserError: if there is no such ResNet.
    """
    for name in TORCHVISION_RESNETS:
        if _resnet_shapes(name) == shapes:
            return name
    raise UserError(
        f"the backbone of {len(shapes)} tensors is none of {', '.join(TORCHVISION_RESNETS)}: "
        "other backbones are not supported in this format."
    )


@cache
def _resnet_shapes(name: str) -> dict[str, torch.Size]:
    with no_random_weights():
        resnet = ResNet(name, num_maps=1, dilation=False, deformable_stages=())
    return {torchvision_key(f"backbone.{key}"): value.shape for key, value in resnet.state_dict().items()}

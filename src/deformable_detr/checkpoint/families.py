"""The two architectures that other projects know, as fields of `ModelConfig` (specification §4.5), and what
their files leave to be found out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Literal

import torch
import torchvision
from torch import Tensor
from torchvision.ops import FrozenBatchNorm2d

from ..config import TORCHVISION_RESNETS, ModelConfig
from ..errors import UserError

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


def family_of(config: ModelConfig, target: str) -> Family:
    """Which of the two architectures `config` is.

    Raises:
        UserError: naming the field that a `target` checkpoint cannot express.
    """
    family: Family = "detr" if config.attention == "dense" else "deformable_detr"
    name = {"detr": "DETR", "deformable_detr": "Deformable DETR"}[family]
    for field, value in FAMILIES[family].items():
        if getattr(config, field) != value:
            raise inexpressible(target, field, getattr(config, field), f"its {name} has {value}")
    if config.backbone.name not in TORCHVISION_RESNETS:
        raise inexpressible(target, "backbone.name", config.backbone.name, "it must be a ResNet")
    if stages := config.backbone.deformable_stages:
        raise inexpressible(target, "backbone.deformable_stages", list(stages), "its ResNets have none")
    if config.num_levels == 2:
        raise inexpressible(target, "num_levels", 2, f"its {name} has 1 level, or 3 and more")
    if family == "deformable_detr" and config.hidden_dim % 32:
        raise inexpressible(target, "hidden_dim", config.hidden_dim, "it must be divisible by 32")
    if config.queries == "proposals" and config.mask_invalid_proposals:
        raise inexpressible(target, "mask_invalid_proposals", True, "its first stage does not mask proposals")
    return family


def inexpressible(target: str, field: str, value: object, reason: str) -> UserError:
    return UserError(
        f"model.{field}={value} cannot be written as a checkpoint of {target} ({reason}): such a model can "
        "only be kept in the native format."
    )


def without_batch_counts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Frozen batch norm counts no batches, but files written with a trainable one hold the counters."""
    return {name: tensor for name, tensor in state.items() if not name.endswith(".num_batches_tracked")}


def count(names: Iterable[str], prefix: str) -> int:
    """How many modules there are in the list `prefix`: one more than the largest index."""
    indices = [re.match(rf"{re.escape(prefix)}\.(\d+)\.", name) for name in names]
    return max((int(match[1]) + 1 for match in indices if match), default=0)


def matrix_shape(state: Mapping[str, Tensor], name: str) -> tuple[int, int]:
    """(rows, columns) of a tensor from which sizes of the model are inferred, or a `UserError`."""
    if name not in state or state[name].ndim != 2:
        raise UserError(
            f"there is no matrix {name}: the file is damaged, or of a variant that is not supported."
        )
    rows, columns = state[name].shape
    return rows, columns


def points_of(attention_weights: int, num_heads: object, num_levels: int) -> int:
    """K, from the number of attention weights of a query, M·L·K, or a `UserError`."""
    if not isinstance(num_heads, int) or num_heads < 1 or attention_weights % (num_heads * num_levels):
        raise UserError(
            f"a query has {attention_weights} attention weights, which {num_heads} heads x {num_levels} "
            "levels do not divide: the number of heads that the file states, or the usual 8, is wrong."
        )
    return attention_weights // (num_heads * num_levels)


def resnet_of(shapes: Mapping[str, torch.Size]) -> str:
    """The ResNet that has these tensors (torchvision's names).

    Raises:
        UserError: where there is none.
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
    with torch.device("meta"):
        resnet = torchvision.models.get_model(name, weights=None, norm_layer=FrozenBatchNorm2d)
    return {key: value.shape for key, value in resnet.state_dict().items() if not key.startswith("fc.")}

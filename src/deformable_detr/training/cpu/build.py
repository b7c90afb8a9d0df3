"""Build the replica of a model for training on a CPU. Only this module chooses which parts are replaced."""

from __future__ import annotations

import copy
from itertools import chain

import torch

from ...models import DetectionModel
from ...ops import native_available
from .convolutions import merge_norms
from .encoder import UnpaddedEncoder


def replica_for_training(model: DetectionModel, device: torch.device, dtype: torch.dtype) -> DetectionModel:
    """Return a model that computes an update faster, with the same parameters, predictions and gradients.

    The parameters and buffers are those of `model`, not copies, so an update changes both. Save only `model`,
    because the parameters of the replica have other names. Sums are computed in another order, so predictions
    and gradients may differ in rounding. `model` itself is returned if there is nothing to gain, as with the
    paper's recipes, on a GPU, in 16-bit types, or without the native library.

    Args:
        dtype: the type in which the forward pass computes.
    """
    if device.type != "cpu" or dtype != torch.float32 or not native_available():
        return model
    tensors = chain(model.parameters(), model.buffers())
    replica = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    is_changed = merge_norms(replica.backbone)
    if UnpaddedEncoder.suits(replica.encoder):
        replica.encoder = UnpaddedEncoder([*replica.encoder.layers])
        is_changed = True
    return replica if is_changed else model

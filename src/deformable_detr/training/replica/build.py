"""Build the replica of a model for training. Only this module chooses which parts are replaced."""

from __future__ import annotations

import copy
from itertools import chain

import torch

from ...inference.convolutions import has_depthwise
from ...models import DetectionModel
from ...ops import native_available
from .convolutions import keep_depthwise_in_float32, merge_norms
from .encoder import UnpaddedEncoder


def replica_for_training(model: DetectionModel, device: torch.device) -> DetectionModel:
    """Return a model that computes an update faster, with the same parameters, predictions and gradients.

    The parameters and buffers are those of `model`, not copies, so an update changes both. Save only `model`,
    because the parameters of the replica have other names. Predictions and gradients may differ in rounding.
    If nothing can be replaced, `model` itself is returned. On a CPU, this is the case for the paper's
    recipes, and if the native library is missing.

    Args:
        model: the model that is trained.
        device: the device that trains.
    """
    on_cpu = device.type == "cpu"
    if on_cpu and not native_available():
        return model
    tensors = chain(model.parameters(), model.buffers())
    replica = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    is_changed = (not on_cpu or has_depthwise(replica.backbone)) and merge_norms(replica.backbone)
    if on_cpu and keep_depthwise_in_float32(replica.backbone):
        is_changed = True
    if on_cpu and UnpaddedEncoder.suits(replica.encoder):
        replica.encoder = UnpaddedEncoder([*replica.encoder.layers])
        is_changed = True
    return replica if is_changed else model

"""Activation checkpointing (Chen et al. 2016), which saves memory at the cost of time.

The activations of encoder and decoder layers are computed again in the backward pass instead of being stored.
"""

from __future__ import annotations

from functools import partial

from torch.utils.checkpoint import checkpoint

from .model import DetectionModel


def checkpoint_activations(model: DetectionModel) -> None:
    """Store only the inputs of each encoder and decoder layer of `model` until its backward pass.

    Gradients stay the same, even with dropout, but each layer's forward pass runs twice. The names of the
    weights do not change. While gradients are disabled, the layers run as usual.
    """
    for layer in (*model.encoder.layers, *model.decoder.layers):
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)

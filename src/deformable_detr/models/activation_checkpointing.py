"""Less memory for more time: what encoder and decoder layers need for their gradients is computed again in
the backward pass instead of being kept (Chen et al. 2016)."""

from __future__ import annotations

from functools import partial

from torch.utils.checkpoint import checkpoint

from .model import DetectionModel


def checkpoint_activations(model: DetectionModel) -> None:
    """From now on, keep only the inputs of each encoder and decoder layer of `model` until its backward pass.

    Gradients are the same bit for bit, dropout included; a layer's forward pass is paid twice. Names of
    weights do not change. Nothing happens where no gradient is wanted.
    """
    for layer in (*model.encoder.layers, *model.decoder.layers):
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)

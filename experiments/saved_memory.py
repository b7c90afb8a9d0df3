"""The memory that autograd keeps between the forward and the backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def kept_bytes(forward: Callable[[], object]) -> int:
    """Return the bytes that autograd keeps for the backward pass of `forward`; each storage counts once."""
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = forward()  # kept alive until all are counted, so that no address is used twice
    del output
    return sum(sizes.values())

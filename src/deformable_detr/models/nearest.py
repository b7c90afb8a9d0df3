"""Nearest-neighbour resizing of maps and masks with explicit indices, equal to `F.interpolate`'s default.

PyTorch computes an index by multiplication, ONNX's Resize by division. If the quotient of two sizes is not
exact in floating point, ONNX may therefore pick a neighbouring row or column, which happens for about one
size in ten. Indices that are computed in the graph are the same in every runtime.
"""

from __future__ import annotations

import torch
from torch import Tensor


def resize_nearest(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps (…, H, W) of any dtype to the height and width in `size`."""
    rows, columns = (
        _indices(target, source, maps.device) for target, source in zip(size, maps.shape[-2:], strict=True)
    )
    return maps.index_select(-2, rows).index_select(-1, columns)


def _indices(target: int, source: int, device: torch.device) -> Tensor:
    """Return the source index of each target index, floor(index * source / target).

    The quotient is computed in float32, as in PyTorch.
    """
    # Sizes as tensors, not numbers: a graph with dynamic sizes computes them when it runs.
    before, after = (torch.full((), size, dtype=torch.float32, device=device) for size in (source, target))
    steps = torch.arange(target, dtype=torch.float32, device=device)
    return (steps * (before / after)).floor().long()

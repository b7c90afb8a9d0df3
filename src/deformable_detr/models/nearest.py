"""Nearest-neighbour resizing of maps and masks, as `F.interpolate` does it by default, written out.

ONNX's Resize divides where PyTorch multiplies, and takes the neighbour row or column where the quotient of
two sizes has no exact float: one size in ten. Indices that are computed in the graph are the same everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor


def resize_nearest(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(…, H, W) to (…, *size), of any type."""
    rows, columns = (
        _indices(wanted, found, maps.device) for wanted, found in zip(size, maps.shape[-2:], strict=True)
    )
    return maps.index_select(-2, rows).index_select(-1, columns)


def _indices(wanted: int, found: int, device: torch.device) -> Tensor:
    """(wanted,) of `found`: floor(index * found / wanted), in float32 as PyTorch computes it."""
    # Tensors of sizes, not numbers: a graph whose sizes are free computes them when it runs.
    given, taken = (torch.full((), size, dtype=torch.float32, device=device) for size in (found, wanted))
    steps = torch.arange(wanted, dtype=torch.float32, device=device)
    return (steps * (given / taken)).floor().long()

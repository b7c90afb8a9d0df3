"""Correspondences between our tensors and those of another project, for conversion in both directions.

"Our" tensors are those of this package's models. Names alone are not enough, because some projects store a
tensor under several names, split one of our tensors, or join two of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError
from .contents import check_fit


@dataclass(frozen=True)
class Correspondence:
    """The statement that the tensors `ours`, joined along `dim`, equal `theirs`, joined along `dim`.

    Each entry of `theirs` is the tuple of names under which the other project stores one tensor. All tensors
    of `theirs` have the same size along `dim`.
    """

    ours: tuple[str, ...]
    theirs: tuple[tuple[str, ...], ...]
    dim: int = 0


def to_theirs(state: Mapping[str, Tensor], correspondences: Iterable[Correspondence]) -> dict[str, Tensor]:
    """Return our tensors `state` under the other project's names.

    If the other project stores a tensor under several names, the same tensor is returned under each of them.
    """
    result: dict[str, Tensor] = {}
    for item in correspondences:
        whole = _join([state[name].contiguous() for name in item.ours], item.dim)
        for part, names in zip(whole.chunk(len(item.theirs), item.dim), item.theirs, strict=True):
            result.update(dict.fromkeys(names, part.contiguous()))
    return result


def to_ours(
    state: Mapping[str, Tensor],
    correspondences: Iterable[Correspondence],
    shapes: Mapping[str, torch.Size],
) -> dict[str, Tensor]:
    """Return the other project's tensors under our names.

    If the other project stores a tensor under several names, `state` needs to contain only one of them.

    Args:
        state: the other project's tensors by name.
        correspondences: the correspondences of all our tensors.
        shapes: the shapes of our tensors by name.

    Raises:
        UserError: if tensors are missing, unknown or of another shape, or if `state` contains different
            values under the names of one tensor. The message names some of the tensors.
    """
    result: dict[str, Tensor] = {}
    missing: list[str] = []
    unfit: list[str] = []
    known: set[str] = set()
    for item in correspondences:
        sizes = [shapes[name][item.dim] for name in item.ours]
        part_shape = list(shapes[item.ours[0]])
        part_shape[item.dim] = sum(sizes) // len(item.theirs)
        parts = []
        for names in item.theirs:
            known.update(names)
            present = [name for name in names if name in state]
            if not present:
                missing.append(names[0])
                continue
            part = state[present[0]]
            if list(part.shape) != part_shape:
                unfit.append(f"{present[0]} {tuple(part.shape)} instead of {tuple(part_shape)}")
            _require_equal(state, present)
            parts.append(part)
        if not missing and not unfit:
            result.update(zip(item.ours, _join(parts, item.dim).split(sizes, item.dim), strict=True))
    check_fit(missing, [name for name in state if name not in known], unfit)
    return result


def _join(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _require_equal(state: Mapping[str, Tensor], names: list[str]) -> None:
    for other in names[1:]:
        if not torch.equal(state[names[0]], state[other]):
            raise UserError(
                f"{names[0]} and {other} differ, but in this variant they are one tensor: the "
                "model was changed in a way that is not supported."
            )

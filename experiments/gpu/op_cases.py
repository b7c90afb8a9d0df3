"""Calls of the operator with fresh random inputs, and the float64 oracle that they are compared with.

Letters: B batch, S value tokens, M heads, D head dimension, Q queries, L levels, P points of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deformable_detr import ops
from deformable_detr.ops.reference import fused_ms_deform_attn_reference, ms_deform_attn_reference

KINDS = ("unfused", "points", "boxes")
SMALL_LEVELS = ((25, 34), (13, 17), (7, 9), (4, 5))
WILD = (float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 3e9, -70000.0)


@dataclass(frozen=True)
class Call:
    """One call in ragged form; `reference` is None for the unfused operator.

    The numbers can be represented exactly in the type of `value` (or, for the other inputs, in float32), so
    the oracle computes from the same numbers.
    """

    kind: str
    levels: tuple[tuple[int, int], ...]
    per_level: tuple[int, ...]
    value: Tensor  # (B, S, M, D)
    reference: Tensor | None  # (B, Q, L, 2 | 4)
    points: Tensor  # (B, Q, M, P, 2)
    weights: Tensor  # (B, Q, M, P)
    grad_output: Tensor  # (B, Q, M·D)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The inputs with respect to which the operator is differentiated."""
        middle = () if self.reference is None else (self.reference,)
        return (self.value, *middle, self.points, self.weights)

    @property
    def names(self) -> tuple[str, ...]:
        return ("value", *(() if self.reference is None else ("reference",)), "points", "weights")

    def changed(self, change: Callable[[Tensor], Tensor]) -> Call:
        """Return the call with `change` applied to each tensor."""
        reference = None if self.reference is None else change(self.reference)
        return replace(
            self,
            value=change(self.value),
            reference=reference,
            points=change(self.points),
            weights=change(self.weights),
            grad_output=change(self.grad_output),
        )

    def run(self, exact: bool = False) -> dict[str, Tensor]:
        """Return the output and all gradients of our operator or, if `exact`, of plain PyTorch in float64.

        The keys are `output` and, for each differentiated input, `grad_NAME`.
        """
        call = self.changed(lambda tensor: tensor.double()) if exact else self
        leaves = [tensor.detach().requires_grad_() for tensor in call.tensors]
        output = call._forward(leaves, exact)
        grads = torch.autograd.grad(output, leaves, call.grad_output)
        return {"output": output.detach()} | {
            f"grad_{name}": grad for name, grad in zip(self.names, grads, strict=True)
        }

    def _forward(self, leaves: Sequence[Tensor], exact: bool) -> Tensor:
        value, *middle, points, weights = leaves
        if exact and middle:
            return fused_ms_deform_attn_reference(
                value, self.levels, middle[0], points, weights, self.per_level
            )
        if exact:
            return ms_deform_attn_reference(value, self.levels, points, weights, self.per_level)
        if middle:
            return ops.fused_ms_deform_attn(
                value, self.levels, middle[0], points, weights, points_per_level=self.per_level
            )
        return ops.ms_deform_attn(value, self.levels, points, weights, points_per_level=self.per_level)


def make_call(
    kind: str,
    dtype: torch.dtype,
    generator: torch.Generator,
    *,
    B: int = 2,
    Q: int = 300,
    M: int = 8,
    D: int = 32,
    per_level: tuple[int, ...] = (4, 4, 4, 4),
    levels: tuple[tuple[int, int], ...] = SMALL_LEVELS,
) -> Call:
    """Return a call with random inputs. Points are inside the maps, on their borders and outside, but never
    within a hundredth of a pixel of a kink of the bilinear surface, where float32 and float64 may rightly
    disagree about the slope."""
    real = torch.float64 if dtype == torch.float64 else torch.float32
    device = generator.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        numbers = torch.rand(*shape, generator=generator, dtype=torch.float64, device=device)
        return numbers * (high - low) + low

    S = sum(height * width for height, width in levels)
    L, P = len(levels), sum(per_level)
    sizes = torch.tensor(levels, dtype=torch.float64, device=device).flip(-1)  # (L, 2): width, height
    of_points = torch.repeat_interleave(
        torch.arange(L, device=device), torch.tensor(per_level, device=device)
    )  # (P,): the level of each point
    pixels = uniform(-2, 1, B, Q, M, P, 2) + uniform(0, 1, B, Q, M, P, 2) * sizes[of_points]
    pixels = pixels.floor() + 0.01 + 0.98 * (pixels - pixels.floor())
    reference = None
    if kind == "unfused":
        points = (pixels + 0.5) / sizes[of_points]
    else:
        reference = uniform(0.1, 0.9, B, Q, L, 2 if kind == "points" else 4).to(real)
        centres = reference.double()[:, :, None, of_points, :2] * sizes[of_points]
        points = pixels + 0.5 - centres
        if kind == "boxes":
            counts = torch.tensor(per_level, dtype=torch.float64, device=device)[of_points, None]
            sides = reference.double()[:, :, None, of_points, 2:]
            points = points / (0.5 * sides * sizes[of_points] / counts)
    return Call(
        kind,
        levels,
        per_level,
        value=uniform(-1, 1, B, S, M, D).to(dtype),
        reference=reference,
        points=points.to(real),
        weights=uniform(-1, 1, B, Q, M, P).to(real),
        grad_output=uniform(-1, 1, B, Q, M * D).to(dtype),
    )


def with_wild_points(call: Call) -> tuple[Call, Call]:
    """Return `call` with every third point at NaN, at infinity or very far away, and `call` with these points
    at a finite place outside the maps. Both must read zeros there."""
    where = torch.arange(call.weights.shape[-1], device=call.points.device) % 3 == 0
    wild = torch.tensor(WILD, dtype=call.points.dtype, device=call.points.device)
    numbers = torch.arange(call.points[..., 0].numel(), device=call.points.device).view(call.weights.shape)
    strange = torch.stack([wild[numbers % len(WILD)], wild[(numbers + 3) % len(WILD)]], dim=-1)
    outside = torch.full_like(call.points, -5.0 if call.kind == "unfused" else -5000.0)
    return (
        replace(call, points=torch.where(where[:, None], strange, call.points)),
        replace(call, points=torch.where(where[:, None], outside, call.points)),
    )


def strided(call: Call) -> Call:
    """Return the same call with its tensors as views into larger memory that is full of NaN.

    `value` is instead contiguous with its heads first in memory.
    """

    def spread(tensor: Tensor) -> Tensor:
        wide = torch.full((*tensor.shape, 2), float("nan"), dtype=tensor.dtype, device=tensor.device)
        return wide[..., 1].copy_(tensor)

    head_major = call.value.transpose(1, 2).contiguous().transpose(1, 2)
    return replace(call.changed(spread), value=head_major)

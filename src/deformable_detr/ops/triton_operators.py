"""Multi-scale deformable attention on a GPU: check tensors and launch the kernels in triton_kernels.py.

The four functions at the end are the CUDA kernels of the operators in `torch.ops.deformable_detr`;
`native.py` registers them and imports this file when the first CUDA tensor arrives.

Letters: B batch, S value tokens, M heads, D channels of a head, Q queries, L levels, K points of a level,
P = Σ K_l points of a head.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import triton
from torch import Tensor

from .triton_kernels import backward_kernel, forward_kernel


@dataclass(frozen=True)
class Tile:
    """The division of a launch into programs.

    Each program computes `queries` queries (a power of two) of one head with `warps` warps. Its loop over the
    points of a level is unrolled by the factor `unroll`.
    """

    queries: int
    warps: int
    unroll: int = 1


_forced: Tile | None = None


@contextmanager
def forced_tile(tile: Tile) -> Iterator[None]:
    """Use `tile` instead of the usual tile for launches inside the `with` block, in order to measure it."""
    global _forced
    before, _forced = _forced, tile
    try:
        yield
    finally:
        _forced = before


def usual_tile(channels: int, channel_bytes: int) -> Tile:
    """Return a tile of one warp, in which each of the 32 threads reads 16 bytes of a pixel at once.

    This holds for heads of 16 to 512 bytes; a tile has at least one query and at most 32.

    On an H100, this tile was the fastest, or within 5 % of it, for every call of the model except the
    decoder's forward pass in bfloat16 (docs/gpu.md).

    `channels`: the channels of a head, padded to a power of two. `channel_bytes`: the bytes per channel of
    the value or, in the backward pass, of its gradient, whose type is never narrower.
    """
    return Tile(queries=max(1, min(32, 32 * 16 // (channels * channel_bytes))), warps=1)


@dataclass(frozen=True)
class _Call:
    """The inputs of a launch, checked so that kernels stay in bounds.

    `reference` is None for `ms_deform_attn`, whose points are locations instead of offsets.
    """

    value: Tensor  # channels dense
    reference: Tensor | None  # dense, as are the next two
    points: Tensor
    weights: Tensor
    spatial_shapes: Sequence[int]
    points_per_level: Sequence[int]

    @property
    def is_empty(self) -> bool:
        return self.value.numel() == 0 or self.weights.numel() == 0

    @property
    def reference_size(self) -> int:
        return 0 if self.reference is None else self.reference.shape[3]

    @property
    def inputs(self) -> tuple[Any, ...]:
        """The arguments that both kernels share."""
        # If there is no reference, the kernels do not read it, but a pointer must be passed.
        reference = self.points if self.reference is None else self.reference
        return self.value, reference, self.points, self.weights, tuple(map(float, self.spatial_shapes))

    @property
    def value_strides(self) -> tuple[int, int, int]:
        return self.value.stride(0), self.value.stride(1), self.value.stride(2)

    def launch(self, kernel: Any, channel_bytes: int, *arguments: Any) -> None:
        """Run `kernel` with one program for each image, head and block of queries.

        `channel_bytes` is as for `usual_tile`.
        """
        B, _, M, D = self.value.shape
        _, Q, _, P = self.weights.shape
        block_of_channels = triton.next_power_of_2(D)
        tile = _forced or usual_tile(block_of_channels, channel_bytes)
        with torch.cuda.device_of(self.value):
            kernel[(B * M * triton.cdiv(Q, tile.queries),)](
                *arguments,
                M=M,
                D=D,
                STARTS=tuple(accumulate(self.points_per_level, initial=0)),
                REFERENCE_SIZE=self.reference_size,
                BLOCK_Q=tile.queries,
                BLOCK_D=block_of_channels,
                P_PADDED=triton.next_power_of_2(P),
                UNROLL=tile.unroll,
                num_warps=tile.warps,
            )


def _checked(
    value: Tensor,
    spatial_shapes: Sequence[int],
    reference: Tensor | None,
    points: Tensor,
    weights: Tensor,
    points_per_level: Sequence[int],
) -> _Call:
    """Check the inputs and return them, made dense if the kernels require it.

    Raises:
        RuntimeError: if shapes, types or devices disagree, or a level or an image is too large; the message
            is that of the CPU operator.
    """
    real = torch.float64 if value.dtype == torch.float64 else torch.float32
    L = len(points_per_level)
    _require(
        value.dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16),
        f"value must be float32, float64, bfloat16 or float16, not {value.dtype}",
    )
    _require(value.ndim == 4, f"value must be (B, S, M, D), not {tuple(value.shape)}")
    _require(weights.ndim == 4, f"weights must be (B, Q, M, P), not {tuple(weights.shape)}")
    _require(
        len(spatial_shapes) == 2 * L,
        f"spatial_shapes must hold H and W for {L} levels, not {len(spatial_shapes)} numbers",
    )
    B, S, M, D = value.shape
    Q, P = weights.shape[1], weights.shape[3]
    tokens = 0
    for level, K in enumerate(points_per_level):
        H, W = spatial_shapes[2 * level : 2 * level + 2]
        _require(H >= 1 and W >= 1 and K >= 0, f"level {level} has size ({H}, {W}) and {K} points")
        # Pixels are counted in float32, which is exact up to 2^22 with room to spare.
        _require(H < 2**22 and W < 2**22, f"level {level} is too large")
        tokens += H * W
    _require(tokens == S, f"spatial_shapes hold {tokens} tokens, but value has {S}")
    total = sum(points_per_level)
    _require(total == P, f"points_per_level hold {total} points, but weights have {P}")
    expected = {"weights": (weights, (B, Q, M, P)), "points": (points, (B, Q, M, P, 2))}
    if reference is not None:
        _require(
            reference.ndim == 4 and reference.shape[3] in (2, 4),
            f"reference must be (B, Q, L, 2) or (B, Q, L, 4), not {tuple(reference.shape)}",
        )
        expected["reference"] = (reference, (B, Q, L, reference.shape[3]))
    for name, (tensor, shape) in expected.items():
        _require(
            tuple(tensor.shape) == shape,
            f"{name} has shape {tuple(tensor.shape)} where {shape} is expected",
        )
        _require(tensor.dtype == real, f"{name} must be {real}, not {tensor.dtype}")
        _require(tensor.device == value.device, f"{name} is on {tensor.device}, but value on {value.device}")
    if D > 1 and value.stride(3) != 1:
        value = value.contiguous()
    # Within an image, the kernels compute addresses in 32 bits.
    _require(
        S * max(value.stride(1), M * D) < 2**31,
        "an image's value spans more than 2^31 elements; split it by heads",
    )
    return _Call(
        value,
        reference if reference is None else reference.contiguous(),
        points.contiguous(),
        weights.contiguous(),
        spatial_shapes,
        points_per_level,
    )


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise RuntimeError(f"deformable_detr: {problem}")


def _run_forward(call: _Call) -> Tensor:
    B, _, M, D = call.value.shape
    Q = call.weights.shape[1]
    if call.is_empty:
        return call.value.new_zeros(B, Q, M * D)
    output = call.value.new_empty(B, Q, M * D)
    call.launch(forward_kernel, output.element_size(), output, *call.inputs, Q, *call.value_strides)
    return output


@dataclass(frozen=True)
class _Gradients:
    value: Tensor
    reference: Tensor
    points: Tensor
    weights: Tensor


def _run_backward(call: _Call, grad_output: Tensor) -> _Gradients:
    B, S, M, D = call.value.shape
    Q = call.weights.shape[1]
    L, real = len(call.points_per_level), call.points.dtype
    _require(
        tuple(grad_output.shape) == (B, Q, M * D),
        f"grad_output has shape {tuple(grad_output.shape)} where {(B, Q, M * D)} is expected",
    )
    _require(
        grad_output.dtype == call.value.dtype,
        f"grad_output must be {call.value.dtype}, not {grad_output.dtype}",
    )
    _refuse_deterministic_mode()
    # Many queries add to a pixel. They do so in float32 even if `value` has a 16-bit type, for accuracy and
    # because GPUs can add 16-bit numbers atomically only by retrying.
    grad_value = call.value.new_zeros(call.value.shape, dtype=real)
    # The shares of the heads are kept apart and summed afterwards, which needs no atomics.
    grad_reference = call.points.new_empty(B, Q, M, L, call.reference_size)
    grad_points, grad_weights = torch.empty_like(call.points), torch.empty_like(call.weights)
    if call.is_empty:
        for grad in (grad_reference, grad_points, grad_weights):
            grad.zero_()
    else:
        grads = grad_value, grad_reference, grad_points, grad_weights
        inputs = grad_output.contiguous(), *call.inputs, S, Q, *call.value_strides
        call.launch(backward_kernel, grad_value.element_size(), *grads, *inputs)
    return _Gradients(grad_value.to(call.value.dtype), grad_reference.sum(2), grad_points, grad_weights)


def _refuse_deterministic_mode() -> None:
    """Raise a RuntimeError in deterministic mode, or warn with `warn_only=True`, as PyTorch's operators do.

    Atomic additions are executed in an arbitrary order, so their rounding differs from run to run.
    """
    if not torch.are_deterministic_algorithms_enabled():
        return
    problem = (
        "the gradient of multi-scale deformable attention has no deterministic kernel for CUDA, but "
        "torch.use_deterministic_algorithms(True) is set (with warn_only=True it runs)"
    )
    if not torch.is_deterministic_algorithms_warn_only_enabled():
        raise RuntimeError(f"deformable_detr: {problem}")
    warnings.warn(f"deformable_detr: {problem}", stacklevel=2)


# ---- The operators -------------------------------------------------------------------------------
# The arguments are those of the schemas in native.py. If shapes, types or devices disagree, all four
# functions raise a RuntimeError.


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[int],
    locations: Tensor,
    weights: Tensor,
    points_per_level: Sequence[int],
) -> Tensor:
    """Return the weighted sums of samples, (B, Q, M·D), in the dtype of `value` (B, S, M, D).

    `spatial_shapes` is (H_1, W_1, …), the sizes of the levels. `locations` are (x, y) as fractions of a
    level, (B, Q, M, P, 2), and `weights` are (B, Q, M, P), for B images, S tokens, M heads with D channels, Q
    queries and P points of a head. Both are float32, or float64 if `value` is. `points_per_level` (L entries,
    whose sum is P) assigns the points, which are sorted by level, to the L levels.

    Raises:
        RuntimeError: if shapes, types or devices disagree, or a level or an image is too large.
    """
    return _run_forward(_checked(value, spatial_shapes, None, locations, weights, points_per_level))


def ms_deform_attn_backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[int],
    locations: Tensor,
    weights: Tensor,
    points_per_level: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of value, locations and weights, in their shapes and dtypes.

    `grad_output` (B, Q, M·D) is the gradient of the output of `ms_deform_attn`, and the other arguments are
    those of `ms_deform_attn`.

    Raises:
        RuntimeError: if shapes, types or devices disagree, a level or an image is too large, or PyTorch is in
            deterministic mode and does not only warn.
    """
    call = _checked(value, spatial_shapes, None, locations, weights, points_per_level)
    grads = _run_backward(call, grad_output)
    return grads.value, grads.points, grads.weights


def fused_ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[int],
    reference: Tensor,
    offsets: Tensor,
    logits: Tensor,
    points_per_level: Sequence[int],
) -> Tensor:
    """Return the weighted sums of samples, (B, Q, M·D), in the dtype of `value` (B, S, M, D).

    The samples are taken at `offsets` (B, Q, M, P, 2) from the points or boxes `reference` (B, Q, L, 2 or 4),
    in the units of `ops.fused_ms_deform_attn`; `points_per_level` (L entries, whose sum is P) assigns them
    to levels. `reference`, `offsets` and `logits` are float32, or float64 if `value` is. The samples' weights
    are the softmax of `logits` (B, Q, M, P) over the P points of a head. `spatial_shapes` is (H_1, W_1, …),
    the sizes of the L levels. B is the number of images, S of tokens, M of heads with D channels, and Q of
    queries.

    Raises:
        RuntimeError: if shapes, types or devices disagree, or a level or an image is too large.
    """
    return _run_forward(_checked(value, spatial_shapes, reference, offsets, logits, points_per_level))


def fused_ms_deform_attn_backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[int],
    reference: Tensor,
    offsets: Tensor,
    logits: Tensor,
    points_per_level: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of value, reference, offsets and logits, in their shapes and dtypes.

    `grad_output` (B, Q, M·D) is the gradient of the output of `fused_ms_deform_attn`, and the other arguments
    are those of `fused_ms_deform_attn`.

    Raises:
        RuntimeError: if shapes, types or devices disagree, a level or an image is too large, or PyTorch is in
            deterministic mode and does not only warn.
    """
    call = _checked(value, spatial_shapes, reference, offsets, logits, points_per_level)
    grads = _run_backward(call, grad_output)
    return grads.value, grads.reference, grads.points, grads.weights

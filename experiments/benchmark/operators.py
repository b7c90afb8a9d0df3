"""The cases of `benchmark op`, and all operators that compute them.

A case is one call of multi-scale deformable attention on a COCO image of 800 × 1066 (B = 1): the encoder's,
in which every token is a query, or the decoder's with 300 queries. Letters: B batch, S value tokens, M heads,
D head dimension, Q queries, L levels, K points per level, P = L·K.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial

import torch
from torch import Tensor

from deformable_detr import ops
from deformable_detr.ops.reference import ms_deform_attn_reference
from experiments.saved_memory import kept_bytes

GRID_SAMPLE, TRANSFORMERS, TORCH_MSDA = "grid_sample", "transformers", "torch-ms-deform-attn"
UNFUSED, EAGER, FUSED = "ours unfused", "ours eager+unfused", "ours fused"
FUSED_HEAD_MAJOR, BF16, BF16_HEAD_MAJOR = "ours fused head-major", "ours fused bf16", "ours bf16 head-major"

# The distributions on PyPI of rivals that may not be installed, by name.
PEERS = {TRANSFORMERS: "transformers", TORCH_MSDA: "torch-ms-deform-attn"}


@dataclass(frozen=True)
class Case:
    """One case. `queries` is the number of queries at random positions; None makes every token a query, as in
    the encoder."""

    name: str
    levels: tuple[tuple[int, int], ...]
    queries: int | None
    heads: int = 8
    points: int = 4  # K
    channels: int = 32  # D

    @property
    def tokens(self) -> int:
        return sum(height * width for height, width in self.levels)

    @property
    def outputs(self) -> int:
        """The number of rows of D numbers that the operator writes: Q·M."""
        return (self.queries or self.tokens) * self.heads


COCO_LEVELS = ((100, 134), (50, 67), (25, 34), (13, 17))
CASES = (Case("encoder", COCO_LEVELS, None), Case("decoder", COCO_LEVELS, 300))

QUICK_LEVELS = ((6, 8), (3, 4))
QUICK_CASES = (
    Case("encoder", QUICK_LEVELS, None, heads=2, channels=16),
    Case("decoder", QUICK_LEVELS, 5, heads=2, channels=16),
)


@dataclass(frozen=True)
class Inputs:
    """The float32 inputs of one case: the fused operator's and, derived from them, the plain operator's."""

    case: Case
    value: Tensor  # (1, S, M, D)
    reference: Tensor  # (1, Q, L, 2)
    offsets: Tensor  # (1, Q, M, L, K, 2), pixels
    logits: Tensor  # (1, Q, M, P)
    locations: Tensor  # (1, Q, M, L, K, 2)
    weights: Tensor  # (1, Q, M, L, K)
    grad_output: Tensor  # (1, Q, M·D)

    def to(self, device: torch.device) -> Inputs:
        tensors = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "case"}
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items()})


def make_inputs(case: Case) -> Inputs:
    """Draw random inputs of realistic size, the same each time.

    The offsets are those at the start of training, where the points of each head have their own direction and
    the k-th point is k pixels away, plus half a pixel of noise.
    """
    generator = torch.Generator().manual_seed(0)
    normal = partial(torch.randn, generator=generator)
    M, L, K, D = case.heads, len(case.levels), case.points, case.channels
    if case.queries is None:
        centres = torch.cat([_centres(height, width) for height, width in case.levels])
    else:
        centres = torch.rand(case.queries, 2, generator=generator)
    Q = len(centres)
    angles = torch.arange(M) * (2 * math.pi / M)
    directions = torch.stack([angles.cos(), angles.sin()], -1)
    directions = directions / directions.abs().amax(-1, keepdim=True)
    steps = directions[:, None, None, :] * torch.arange(1, K + 1)[:, None]  # (M, 1, K, 2)
    reference = centres[None, :, None].expand(1, Q, L, 2).contiguous()
    offsets = steps + 0.5 * normal(1, Q, M, L, K, 2)
    logits = normal(1, Q, M, L * K)
    return Inputs(
        case=case,
        value=normal(1, case.tokens, M, D),
        reference=reference,
        offsets=offsets,
        logits=logits,
        locations=_locations(case.levels, reference, offsets),
        weights=logits.softmax(-1).view(1, Q, M, L, K),
        grad_output=normal(1, Q, M * D),
    )


def _centres(height: int, width: int) -> Tensor:
    y, x = torch.meshgrid(
        (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij"
    )
    return torch.stack([x, y], -1).view(-1, 2)


def _locations(levels: Sequence[tuple[int, int]], reference: Tensor, offsets: Tensor) -> Tensor:
    """Return the sampling locations around the reference points, as the authors' module computes them."""
    sizes = offsets.new_tensor([(width, height) for height, width in levels])
    return reference[:, :, None, :, None] + offsets / sizes[:, None]


# ---- Operators -----------------------------------------------------------------------------------

# A function of tensors, and its input tensors, with respect to which it is differentiated.
Bound = tuple[Callable[..., Tensor], tuple[Tensor, ...]]


def _grid_sample(inputs: Inputs) -> Bound:
    points = (inputs.case.points,) * len(inputs.case.levels)

    def run(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return ms_deform_attn_reference(
            value, inputs.case.levels, locations.flatten(3, 4), weights.flatten(3), points
        )

    return run, (inputs.value, inputs.locations, inputs.weights)


def _transformers(inputs: Inputs) -> Bound:
    from transformers.models.deformable_detr import modeling_deformable_detr as theirs

    module = theirs.MultiScaleDeformableAttention()
    levels = list(inputs.case.levels)
    shapes, starts = _level_tensors(inputs)

    def run(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        output: Tensor = module(value, shapes, levels, starts, locations, weights, 64)
        return output

    return run, (inputs.value, inputs.locations, inputs.weights)


def _torch_msda(inputs: Inputs) -> Bound:
    from torch_ms_deform_attn import ms_deform_attn as theirs

    shapes, starts = _level_tensors(inputs)

    def run(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        output: Tensor = theirs(value, shapes, starts, locations, weights)
        return output

    return run, (inputs.value, inputs.locations, inputs.weights)


def _level_tensors(inputs: Inputs) -> tuple[Tensor, Tensor]:
    shapes = torch.tensor(inputs.case.levels, device=inputs.value.device)
    sizes = shapes.prod(1)
    return shapes, sizes.cumsum(0) - sizes


def _unfused(inputs: Inputs) -> Bound:
    def run(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return ops.ms_deform_attn(value, inputs.case.levels, locations, weights)

    return run, (inputs.value, inputs.locations, inputs.weights)


def _eager(inputs: Inputs) -> Bound:
    """Return a function that computes softmax and locations in PyTorch and then calls the plain operator.

    A model without the fused form computes it in this way.
    """

    def run(value: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        locations = _locations(inputs.case.levels, inputs.reference, offsets)
        weights = logits.softmax(-1).view(offsets.shape[:-1])
        return ops.ms_deform_attn(value, inputs.case.levels, locations, weights)

    return run, (inputs.value, inputs.offsets, inputs.logits)


def _fused(dtype: torch.dtype, head_major: bool, inputs: Inputs) -> Bound:
    value = inputs.value.to(dtype)
    if head_major:  # (B, S, M, D) in shape, [B, M, S, D] in memory
        value = value.transpose(1, 2).contiguous().transpose(1, 2)

    def run(value: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        return ops.fused_ms_deform_attn(value, inputs.case.levels, inputs.reference, offsets, logits)

    return run, (value, inputs.offsets, inputs.logits)


OPERATORS: dict[str, Callable[[Inputs], Bound]] = {
    GRID_SAMPLE: _grid_sample,
    TRANSFORMERS: _transformers,
    TORCH_MSDA: _torch_msda,
    UNFUSED: _unfused,
    EAGER: _eager,
    FUSED: partial(_fused, torch.float32, False),
    FUSED_HEAD_MAJOR: partial(_fused, torch.float32, True),
    BF16: partial(_fused, torch.bfloat16, False),
    BF16_HEAD_MAJOR: partial(_fused, torch.bfloat16, True),
}


def forward_of(name: str, inputs: Inputs) -> Callable[[], Tensor]:
    """Return a call of the operator `name`'s forward pass, without autograd."""
    run, tensors = OPERATORS[name](inputs)

    def call() -> Tensor:
        with torch.no_grad():
            return run(*tensors)

    return call


def forward_backward_of(name: str, inputs: Inputs) -> Callable[[], tuple[Tensor, ...]]:
    """Return a call of the forward pass and of the gradients of value, offsets or locations, and logits or
    weights."""
    run, tensors = OPERATORS[name](inputs)
    leaves = tuple(tensor.detach().requires_grad_() for tensor in tensors)
    grad_output = inputs.grad_output.to(leaves[0].dtype)

    def call() -> tuple[Tensor, ...]:
        return torch.autograd.grad(run(*leaves), leaves, grad_output)

    return call


def fused_backward_of(inputs: Inputs, dtype: torch.dtype) -> Callable[[], object]:
    """Return a call of only the native fused operator's backward pass."""
    case = inputs.case
    value, grad_output = inputs.value.to(dtype), inputs.grad_output.to(dtype)
    offsets = inputs.offsets.flatten(3, 4)
    shapes = [size for level in case.levels for size in level]
    points = [case.points] * len(case.levels)

    def call() -> object:
        return torch.ops.deformable_detr.fused_ms_deform_attn_backward(
            grad_output, value, shapes, inputs.reference, offsets, inputs.logits, points
        )

    return call


def saved_bytes(name: str, inputs: Inputs) -> int:
    """Return the bytes that autograd keeps between forward and backward; memory saved twice counts once."""
    run, tensors = OPERATORS[name](inputs)
    leaves = tuple(tensor.detach().requires_grad_() for tensor in tensors)
    return kept_bytes(lambda: run(*leaves))


# ---- The measured limit --------------------------------------------------------------------------

# The number of distinct stretches of rows that the limits read. With 16 points of 32 float32 channels they
# are 16 KB in total, half of the smallest common first-level cache, or 512 KB, half of a second-level cache
# of a server.
FIRST_CACHE, SECOND_CACHE = 2, 64
LIMIT_TASKS = 64


def limit_of(
    case: Case, dtype: torch.dtype, stretches: int
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return calls of the forward and the backward pass of a kernel that reads and adds the same number of
    rows as the case, but looks nothing up (docs/operator.md, "How near the limit"). It is compiled for the
    instruction set in use.

    Args:
        case: the case.
        dtype: the type of the rows.
        stretches: FIRST_CACHE or SECOND_CACHE, the cache that holds the rows.
    """
    generator = torch.Generator().manual_seed(0)
    reads = 4 * case.points * len(case.levels)
    rows = torch.randn(stretches * reads, case.channels, generator=generator).to(dtype)
    weights = torch.rand(reads, generator=generator) / reads
    grad = torch.randn(case.channels, generator=generator).to(dtype)
    kernels = ops.native.cpu_kernels()[0]
    library = torch.ops.deformable_detr

    def tasks() -> int:
        # Each task of the backward pass has zeros of its own to add to. If they fill the second cache, making
        # more of them than there are threads would take longer than adding.
        return min(LIMIT_TASKS if stretches == FIRST_CACHE else torch.get_num_threads(), case.outputs)

    return (
        lambda: library.sampling_limit(rows, weights, case.outputs, tasks(), kernels),
        lambda: library.sampling_limit_backward(rows, weights, grad, case.outputs, tasks(), kernels),
    )

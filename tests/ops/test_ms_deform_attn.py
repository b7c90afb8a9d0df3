"""The deformable attention operator against nested loops, and as a citizen of PyTorch.

Every test of arithmetic runs with each set of kernels that this CPU can run (x86-64-v4, x86-64-v3, portable).
Sizes are unequal on purpose: no two letters share a number, so that no mix-up cancels out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.library import opcheck

import deformable_detr
from deformable_detr import ops
from deformable_detr.ops.native import cpu_kernels
from deformable_detr.ops.reference import fused_ms_deform_attn_reference, ms_deform_attn_reference
from tests.support.oracles import fused_ms_deform_attn_oracle, ms_deform_attn_oracle

SHAPES = ((5, 7), (3, 4), (1, 2))
RAGGED = (4, 2, 3)
needs_native = pytest.mark.skipif(not ops.native_available(), reason=ops.kernels()["cpu"])


@pytest.fixture(params=cpu_kernels()[1:] if ops.native_available() else ("reference",))
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each set of kernels in turn."""
    if request.param == "reference":
        yield "reference"
        return
    before = cpu_kernels()[0]
    torch.ops.deformable_detr.choose_cpu_kernels(request.param)
    yield request.param
    torch.ops.deformable_detr.choose_cpu_kernels(before)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Case:
    """Inputs of one call in ragged form; `reference` is None for the unfused operator."""

    value: Tensor
    shapes: tuple[tuple[int, int], ...]
    points: Tensor
    weights: Tensor
    per_level: tuple[int, ...]
    reference: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        middle = () if self.reference is None else (self.reference,)
        return (self.value, *middle, self.points, self.weights)

    def with_tensors(self, *tensors: Tensor) -> Case:
        reference = tensors[1] if self.reference is not None else None
        return replace(self, value=tensors[0], points=tensors[-2], weights=tensors[-1], reference=reference)

    def to(self, dtype: torch.dtype) -> Case:
        return self.with_tensors(*(each.to(dtype) for each in self.tensors))

    def run(self) -> Tensor:
        if self.reference is None:
            return ops.ms_deform_attn(
                self.value, self.shapes, self.points, self.weights, points_per_level=self.per_level
            )
        return ops.fused_ms_deform_attn(
            self.value,
            self.shapes,
            self.reference,
            self.points,
            self.weights,
            points_per_level=self.per_level,
        )

    def reference_run(self) -> Tensor:
        if self.reference is None:
            return ms_deform_attn_reference(
                self.value, self.shapes, self.points, self.weights, self.per_level
            )
        return fused_ms_deform_attn_reference(
            self.value, self.shapes, self.reference, self.points, self.weights, self.per_level
        )

    def oracle_run(self) -> Tensor:
        if self.reference is None:
            return ms_deform_attn_oracle(self.value, self.shapes, self.points, self.weights, self.per_level)
        return fused_ms_deform_attn_oracle(
            self.value, self.shapes, self.reference, self.points, self.weights, self.per_level
        )

    def gradients(self, grad_output: Tensor, run: Callable[[Case], Tensor]) -> tuple[Tensor, ...]:
        tensors = [each.detach().clone().requires_grad_() for each in self.tensors]
        return torch.autograd.grad(run(self.with_tensors(*tensors)), tensors, grad_output)


def make_case(
    kind: str = "unfused",
    *,
    B: int = 2,
    Q: int = 6,
    M: int = 3,
    D: int = 5,
    per_level: tuple[int, ...] = RAGGED,
    shapes: tuple[tuple[int, int], ...] = SHAPES,
    dtype: torch.dtype = torch.float64,
) -> Case:
    """A random call whose points fall inside, across the border and outside. kind: unfused, points, boxes."""
    generator = torch.Generator().manual_seed(hash((B, Q, M, D, per_level)) % 2**31)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return (torch.rand(*shape, generator=generator, dtype=torch.float64) * (high - low) + low).to(real)

    real = torch.float64 if dtype == torch.float64 else torch.float32
    P, S = sum(per_level), sum(height * width for height, width in shapes)
    case = Case(
        value=uniform(-1, 1, B, S, M, D).to(dtype),
        shapes=shapes,
        points=uniform(-0.4, 1.4, B, Q, M, P, 2),
        weights=uniform(-1, 1, B, Q, M, P),
        per_level=per_level,
    )
    if kind == "unfused":
        return case
    reference = uniform(0, 1, B, Q, len(shapes), 2 if kind == "points" else 4)
    return replace(case, points=uniform(-3, 3, B, Q, M, P, 2), weights=4 * case.weights, reference=reference)


KINDS = ("unfused", "points", "boxes")


# ---- Arithmetic ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "per_level"),
    [
        *((kind, per_level) for kind in KINDS for per_level in (RAGGED, (4, 4, 4), (1, 0, 20))),
        ("unfused", (0, 0, 0)),  # the other kinds have a softmax, which has no value over no points
    ],
)
def test_forward_equals_nested_loops(kernels: str, kind: str, per_level: tuple[int, ...]) -> None:
    case = make_case(kind, per_level=per_level)
    torch.testing.assert_close(case.run(), case.oracle_run(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("D", [1, 3, 8, 16, 30, 32, 64, 71, 256])
def test_any_head_dimension_in_float32(kernels: str, kind: str, D: int) -> None:
    case = make_case(kind, D=D, dtype=torch.float32)
    exact = case.to(torch.float64)
    torch.testing.assert_close(case.run().double(), exact.reference_run(), rtol=1e-5, atol=2e-6)
    grad_output = torch.randn(case.run().shape, generator=torch.Generator().manual_seed(0))
    ours = case.gradients(grad_output, Case.run)
    theirs = exact.gradients(grad_output.double(), Case.reference_run)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our.double(), their, rtol=1e-4, atol=1e-5 * their.abs().max().item())


def test_the_plain_form_has_levels_and_points_apart(kernels: str) -> None:
    ragged = make_case(per_level=(4, 4, 4))
    B, Q, M = ragged.weights.shape[:3]
    plain = ops.ms_deform_attn(
        ragged.value, SHAPES, ragged.points.view(B, Q, M, 3, 4, 2), ragged.weights.view(B, Q, M, 3, 4)
    )
    assert torch.equal(plain, ragged.run())
    fused = make_case("boxes", per_level=(4, 4, 4))
    plain = ops.fused_ms_deform_attn(
        fused.value, SHAPES, fused.reference, fused.points.view(B, Q, M, 3, 4, 2), fused.weights
    )
    assert torch.equal(plain, fused.run())


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kernels: str, kind: str) -> None:
    case = make_case(kind, Q=2, M=2, D=3)
    tensors = [each.requires_grad_() for each in case.tensors]
    assert gradcheck(lambda *each: case.with_tensors(*each).run(), tensors)


@needs_native
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("D", [7, 32])
def test_sixteen_bits_lose_no_more_than_one_rounding(
    kernels: str, kind: str, dtype: torch.dtype, D: int
) -> None:
    """Kernels accumulate in float32: the error stays near that of rounding the exact result once.

    Twice plain PyTorch's error in that type, the usual bound, is far looser.
    """
    case = make_case(kind, D=D, dtype=dtype)
    exact = case.to(torch.float64)
    output = case.run()
    assert output.dtype == dtype
    grad_output = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = [exact.reference_run(), *exact.gradients(grad_output.double(), Case.reference_run)]
    for ours, right in zip([output, *case.gradients(grad_output, Case.run)], expected, strict=True):
        rounding = (right.to(ours.dtype).double() - right).abs().max()
        assert (ours.double() - right).abs().max() <= 1.5 * rounding + 1e-5 * right.abs().max()


@needs_native
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_sixteen_bit_number_survives(kernels: str, dtype: torch.dtype) -> None:
    """Sampling a pixel's centre with weight one copies it: subnormal numbers and NaN included.

    Infinity becomes NaN, because pixels outside count as zero times the nearest one inside.
    """
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    expected = torch.where(numbers.isinf(), torch.nan, numbers)
    for D in (1, 2, 32, 64):
        value = numbers.view(-1, 1, 1, D)  # images of one pixel
        B = value.shape[0]
        output = ops.ms_deform_attn(
            value, ((1, 1),), torch.full((B, 1, 1, 1, 1, 2), 0.5), torch.ones(B, 1, 1, 1, 1)
        )
        torch.testing.assert_close(output.flatten(), expected, rtol=0, atol=0, equal_nan=True)


# ---- Awkward inputs ------------------------------------------------------------------------------

WILD = [
    float("nan"),
    float("inf"),
    -float("inf"),
    1e30,
    -1e30,
    3e38,
    2.0**31,
    -(2.0**31),
    2.0**63,
    1e-45,
    -0.0,
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_huge_and_non_finite_points_are_outside(kernels: str, kind: str, dtype: torch.dtype) -> None:
    case = make_case(kind, Q=len(WILD), dtype=dtype)
    case.points[..., 0] = torch.tensor(WILD, dtype=dtype).view(1, -1, 1, 1)
    case.points[:, :, 1] = case.points[:, :, 1].flip(-1)
    torch.testing.assert_close(case.run().double(), case.oracle_run(), rtol=1e-5, atol=1e-5)
    if kind == "unfused":
        grads = case.gradients(torch.ones_like(case.run()), Case.run)
        assert all(bool(each.isfinite().all()) for each in grads)


def test_points_on_the_border(kernels: str) -> None:
    """Exactly on pixel centres, on edges, and one float beside them."""
    edges = torch.tensor([-0.5, 0.0, 0.5, 1.0, 1.5, 3.5, 4.0, 4.5, 5.0], dtype=torch.float64) / 5
    edges = torch.cat([edges, edges.nextafter(torch.tensor(9.0)), edges.nextafter(torch.tensor(-9.0))])
    x, y = torch.meshgrid(edges, edges, indexing="xy")
    value = torch.randn(1, 25, 1, 2, dtype=torch.float64)
    points = torch.stack([x, y], -1).view(1, -1, 1, 1, 2)
    case = Case(value, ((5, 5),), points, torch.ones(points.shape[:4], dtype=torch.float64), (1,))
    torch.testing.assert_close(case.run(), case.oracle_run(), rtol=0, atol=1e-12)


@needs_native
def test_nan_weights_and_logits_are_not_hidden(kernels: str) -> None:
    for kind in ("unfused", "points"):
        case = make_case(kind, dtype=torch.float32)
        case.weights[0, 1, 2, 3] = float("nan")
        output = case.run().view(2, 6, 3, 5)
        assert output[0, 1, 2].isnan().all()
        output[0, 1, 2] = 0
        assert output.isfinite().all()


def test_softmax_of_huge_and_masked_logits(kernels: str) -> None:
    case = make_case("points", dtype=torch.float32)
    case.weights.mul_(100)
    case.weights[:, :, :, ::2] = -float("inf")
    torch.testing.assert_close(case.run(), case.reference_run(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("empty", ["B", "Q", "M", "D"])
def test_empty(kind: str, empty: str) -> None:
    case = make_case(kind, dtype=torch.float32, **{empty: 0})
    sizes = {"B": 2, "Q": 6, "M": 3, "D": 5, empty: 0}
    output = case.run()
    assert output.shape == (sizes["B"], sizes["Q"], sizes["M"] * sizes["D"])
    if ops.native_available():
        for grad, tensor in zip(case.gradients(output, Case.run), case.tensors, strict=True):
            assert grad.shape == tensor.shape
            assert not grad.any()


def test_no_levels(kernels: str) -> None:
    case = make_case(per_level=(), shapes=())
    output = case.run()
    assert output.shape == (2, 6, 15)
    assert not output.any()


@pytest.mark.parametrize("kind", KINDS)
def test_strided_inputs(kernels: str, kind: str) -> None:
    case = make_case(kind, D=8)
    grad_output = torch.ones(1, dtype=torch.float64).expand(case.run().shape)
    expected = [case.run(), *case.gradients(grad_output, Case.run)]

    def odd(tensor: Tensor) -> Tensor:  # every dimension strided
        wide = torch.full([2 * size + 1 for size in tensor.shape], float("nan"), dtype=tensor.dtype)
        view = wide[tuple(slice(1, None, 2) for _ in tensor.shape)]
        return view.copy_(tensor)

    def head_major(tensor: Tensor) -> Tensor:
        return tensor.transpose(1, 2).contiguous().transpose(1, 2)

    for layout in (odd, head_major):
        tensors = [layout(each).requires_grad_() for each in case.tensors]
        output = case.with_tensors(*tensors).run()
        for ours, right in zip(
            [output, *torch.autograd.grad(output, tensors, grad_output)], expected, strict=True
        ):
            assert torch.equal(ours, right)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("B", [1, 3])
@needs_native
def test_same_bits_for_any_number_of_threads(
    kernels: str, kind: str, B: int, threads: Callable[[int], None]
) -> None:
    """With one image of two heads, more threads than heads split grad_value by level, and then by channel."""
    case = make_case(kind, B=B, Q=301, M=2, D=40, shapes=((9, 11), (5, 6), (3, 3)), dtype=torch.float32)
    grad_output = torch.randn(B, 301, 80)
    threads(1)
    expected = [case.run(), *case.gradients(grad_output, Case.run)]
    for count in (2, 3, 8):
        threads(count)
        for ours, right in zip([case.run(), *case.gradients(grad_output, Case.run)], expected, strict=True):
            assert torch.equal(ours, right), f"{count} threads"


# ---- Refusals ------------------------------------------------------------------------------------


def test_public_functions_say_which_shape_is_wrong() -> None:
    case = make_case()
    with pytest.raises(ValueError, match="hold 49 tokens, but value has 48"):
        replace(case, value=case.value[:, 1:]).run()
    with pytest.raises(ValueError, match="value must be of a floating-point type"):
        replace(case, value=case.value.to(torch.int32)).run()
    with pytest.raises(ValueError, match="sampling_locations has shape"):
        replace(case, points=case.points[:, :, :, 1:]).run()
    with pytest.raises(ValueError, match="points_per_level has 2 entries for 3 levels"):
        replace(case, per_level=(4, 5)).run()


@needs_native
def test_the_operator_itself_refuses_what_would_read_outside() -> None:
    operator = torch.ops.deformable_detr.ms_deform_attn.default
    case = make_case(dtype=torch.float32)
    flat = [size for shape in SHAPES for size in shape]
    assert operator(case.value, flat, case.points, case.weights, RAGGED).shape == (2, 6, 15)

    def refused(message: str, **changes: Any) -> None:
        arguments = {
            "value": case.value,
            "spatial_shapes": flat,
            "locations": case.points,
            "weights": case.weights,
            "points_per_level": RAGGED,
        } | changes
        with pytest.raises(RuntimeError, match=message):
            operator(**arguments)

    refused("hold more than value's 48 tokens", value=case.value[:, 1:])
    refused("hold 49 tokens, but value has 50", value=torch.nn.functional.pad(case.value, (0, 0, 0, 0, 0, 1)))
    refused("level 0 has size", spatial_shapes=[-5, -7, 3, 4, 1, 2])
    refused("level 0 is too large", spatial_shapes=[2**40, 2**40, 3, 4, 1, 2])
    refused("spatial_shapes must hold H and W for 3 levels", spatial_shapes=flat[:-1])
    refused("points_per_level hold 8 points", points_per_level=(4, 2, 2))
    refused("level 2 has size .* and -2 points", points_per_level=(9, 2, -2))
    refused("points has shape", locations=case.points[:, :, :, :, :1])
    refused("weights has shape", weights=case.weights[:, :, :2])
    refused("points must be Float, not Double", locations=case.points.double())
    refused("value must be float32", value=case.value.int())


@needs_native
def test_second_derivative_is_refused() -> None:
    case = make_case()
    value = case.value.requires_grad_()
    (grad,) = torch.autograd.grad(case.run().square().sum(), value, create_graph=True)
    with pytest.raises(NotImplementedError, match="differentiated once"):
        grad.sum().backward()


# ---- Citizenship ---------------------------------------------------------------------------------


def raw_arguments(case: Case) -> tuple[Any, ...]:
    value, *rest = case.tensors
    return (value, [size for shape in case.shapes for size in shape], *rest, list(case.per_level))


@needs_native
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
def test_opcheck(kind: str) -> None:
    case = make_case(kind, dtype=torch.float32)
    case = case.with_tensors(*(each.requires_grad_() for each in case.tensors))
    operators = torch.ops.deformable_detr
    forward, backward = (
        (operators.ms_deform_attn, operators.ms_deform_attn_backward)
        if kind == "unfused"
        else (operators.fused_ms_deform_attn, operators.fused_ms_deform_attn_backward)
    )
    opcheck(forward.default, raw_arguments(case))
    detached = case.with_tensors(*(each.detach() for each in case.tensors))
    opcheck(backward.default, (torch.ones(2, 6, 15), *raw_arguments(detached)))


@needs_native
@pytest.mark.parametrize("kind", ["unfused", "boxes"])
def test_compile_without_a_graph_break(kind: str) -> None:
    case = make_case(kind, dtype=torch.float32)
    tensors = [each.requires_grad_() for each in case.tensors]

    def double(*each: Tensor) -> Tensor:
        return 2 * case.with_tensors(*each).run()

    compiled = torch.compile(double, fullgraph=True, backend="aot_eager")
    ours, right = compiled(*tensors), double(*tensors)
    assert torch.equal(ours, right)
    for our, their in zip(
        torch.autograd.grad(ours.sum(), tensors), torch.autograd.grad(right.sum(), tensors), strict=True
    ):
        assert torch.equal(our, their)


class _Pyramid(torch.nn.Module):
    """Feature levels → operator, as a detector does it: spatial shapes come from tensors."""

    def forward(
        self, levels: tuple[Tensor, ...], reference: Tensor, offsets: Tensor, logits: Tensor
    ) -> Tensor:
        value = torch.cat([each.flatten(2) for each in levels], 2).transpose(1, 2).unflatten(-1, (3, 5))
        shapes = [(each.shape[2], each.shape[3]) for each in levels]
        return ops.fused_ms_deform_attn(value, shapes, reference, offsets, logits)


@needs_native
def test_export_with_dynamic_shapes() -> None:
    def inputs(B: int, Q: int, *shapes: tuple[int, int]) -> tuple[Any, ...]:
        levels = tuple(torch.randn(B, 15, *shape) for shape in shapes)
        offsets, logits = torch.randn(B, Q, 3, len(shapes), 4, 2), torch.randn(B, Q, 3, len(shapes) * 4)
        return levels, torch.rand(B, Q, len(shapes), 2), offsets, logits

    dynamic, fixed = torch.export.Dim.DYNAMIC, torch.export.Dim.STATIC
    level = {0: dynamic, 1: fixed, 2: dynamic, 3: dynamic}
    query = {0: dynamic, 1: dynamic}
    program = torch.export.export(
        _Pyramid(), inputs(2, 7, (6, 8), (3, 4)), dynamic_shapes=((level, level), query, query, query)
    )
    assert any("fused_ms_deform_attn" in str(node.target) for node in program.graph.nodes)
    other = inputs(3, 11, (9, 5), (4, 2))
    assert torch.equal(program.module()(*other), _Pyramid()(*other))


@needs_native
@pytest.mark.parametrize("kind", KINDS)
def test_vmap_joins_the_batch(kind: str) -> None:
    case = make_case(kind, B=4)
    expected = case.run().unflatten(0, (2, 2))
    split = [each.unflatten(0, (2, 2)) for each in case.tensors]
    mapped = torch.vmap(lambda *each: case.with_tensors(*each).run())
    assert torch.equal(mapped(*split), expected)
    shared = torch.vmap(lambda *each: case.with_tensors(split[0][0], *each).run())
    assert torch.equal(shared(*split[1:])[0], expected[0])


def test_autocast_leaves_coordinates_alone() -> None:
    case = make_case("points", dtype=torch.float32, D=8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert case.run().dtype == torch.float32
        value = torch.nn.functional.linear(case.value, torch.eye(8))  # bfloat16, as a projection makes it
        output = replace(case, value=value).run()
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), case.run(), rtol=0.02, atol=0.02)


def test_sixteen_bit_weights_are_widened() -> None:
    case = make_case("points", dtype=torch.float32)
    narrow = replace(case, weights=case.weights.bfloat16())
    assert torch.equal(narrow.run(), replace(case, weights=narrow.weights.float()).run())


@needs_native
def test_deterministic_mode_is_content() -> None:
    case = make_case("boxes", dtype=torch.float32)
    torch.use_deterministic_algorithms(True)
    try:
        case.gradients(torch.ones_like(case.run()), Case.run)
    finally:
        torch.use_deterministic_algorithms(False)


@needs_native
def test_only_inputs_are_saved_for_backward() -> None:
    case = make_case("points", dtype=torch.float32)
    tensors = [each.requires_grad_() for each in case.tensors]
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda each: saved.append(each.data_ptr()) or each, lambda each: each
    ):
        case.with_tensors(*tensors).run()
    assert sorted(saved) == sorted(each.data_ptr() for each in tensors)


def test_other_devices_take_the_reference() -> None:
    case = make_case("boxes", dtype=torch.float32)
    meta = case.with_tensors(*(each.to("meta") for each in case.tensors))
    assert meta.run().shape == (2, 6, 15)
    assert ops.kernels()["other"] == "reference"


# ---- Installation --------------------------------------------------------------------------------

PACKAGE = Path(deformable_detr.__file__).parent
ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "src/deformable_detr/ops/csrc"
COMPILER = shutil.which("g++") or shutil.which("clang++")


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")
def test_the_operator_is_built_if_there_is_a_compiler() -> None:
    assert ops.kernels()["cpu"].startswith("native ("), ops.kernels()["cpu"]


def run_python(*arguments: str, python: str = sys.executable, **environment: str) -> str:
    done = subprocess.run(
        [python, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        cwd="/",
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_without_the_library_one_warning_and_the_same_numbers(tmp_path: Path) -> None:
    shutil.copytree(
        PACKAGE / "ops", tmp_path / "deformable_detr/ops", ignore=shutil.ignore_patterns("_native*", "csrc")
    )
    (tmp_path / "deformable_detr/__init__.py").touch()
    shutil.copy(PACKAGE / "errors.py", tmp_path / "deformable_detr/errors.py")
    (tmp_path / "deformable_detr/ops/_native_build.json").write_text(
        '{"problem": "no C++ compiler was found"}'
    )
    script = """
import sys, warnings
sys.meta_path[:] = [each for each in sys.meta_path if "editable" not in type(each).__module__.lower()]
sys.path.insert(0, sys.argv[1])
import torch
from deformable_detr import ops
torch.manual_seed(0)
value, points, weights = torch.randn(1, 12, 2, 3), torch.rand(1, 5, 2, 1, 4, 2), torch.rand(1, 5, 2, 1, 4)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    outputs = [ops.ms_deform_attn(value, ((3, 4),), points, weights) for _ in range(3)]
assert len(caught) == 1 and caught[0].category is ops.NativeOperatorMissing, caught
warning = caught[0]
print(ops.__file__, ops.native_available(), ops.kernels()["cpu"], warning.filename, warning.message, sep="|")
print(outputs[0].flatten().tolist())
"""
    first, numbers = run_python("-c", script, str(tmp_path)).splitlines()
    file, available, cpu, warned_in, message = first.split("|")
    assert file.startswith(str(tmp_path))
    assert (available, cpu) == ("False", "reference (no C++ compiler was found)")
    assert warned_in == "<string>"  # the warning points at the caller
    assert "no C++ compiler was found" in message

    torch.manual_seed(0)
    value, points, weights = torch.randn(1, 12, 2, 3), torch.rand(1, 5, 2, 1, 4, 2), torch.rand(1, 5, 2, 1, 4)
    here = ops.ms_deform_attn(value, ((3, 4),), points, weights).flatten()
    torch.testing.assert_close(torch.tensor([float(each) for each in numbers[1:-1].split(",")]), here)


def make_environment(folder: Path) -> str:
    """A virtual environment without this package, which sees the torch of this one. Returns its Python."""
    run_python("-m", "venv", str(folder))
    (site_packages,) = folder.glob("lib/python*/site-packages")
    (site_packages / "torch_from_here.pth").write_text(str(Path(torch.__file__).parents[1]))
    return str(folder / "bin/python")


def can_build() -> bool:
    import importlib.util

    return importlib.util.find_spec("scikit_build_core") is not None and shutil.which("ninja") is not None


REPORT = """
import sys
sys.meta_path[:] = [each for each in sys.meta_path if "editable" not in type(each).__module__.lower()]
sys.path[:] = [each for each in sys.path if not each.endswith("/src")]
from deformable_detr import ops
print(ops.__file__, ops.kernels()["cpu"], sep="|")
"""


def report_of(python: str) -> tuple[str, str]:
    file, cpu = run_python("-c", REPORT, python=python, PYTHONPATH="", PATH="/nowhere").strip().split("|")
    return file, cpu


@pytest.mark.slow
@pytest.mark.skipif(
    not can_build() or COMPILER is None, reason="needs a compiler, Ninja and scikit-build-core"
)
def test_a_wheel_installs_without_a_compiler(tmp_path: Path) -> None:
    sources = copy_sources(tmp_path)
    builder = make_environment(tmp_path / "builder")
    run_python(
        *(
            "-m",
            "pip",
            "wheel",
            "--no-build-isolation",
            "--no-deps",
            "--no-index",
            "--wheel-dir",
            str(tmp_path),
        ),
        *("--config-settings=cmake.define.DEFORMABLE_DETR_NATIVE=ON", str(sources)),
        python=builder,
    )
    (wheel,) = tmp_path.glob("*.whl")
    assert "-py3-none-" in wheel.name
    user = make_environment(tmp_path / "user")
    run_python(*("-m", "pip", "install", "--no-deps", "--no-index", str(wheel)), python=user, PATH="/nowhere")
    file, cpu = report_of(user)
    assert file.startswith(str(tmp_path / "user"))
    assert cpu.startswith("native (")
    assert not list(Path(file).parent.rglob("*.cpp"))


@pytest.mark.slow
@pytest.mark.skipif(not can_build(), reason="needs Ninja and scikit-build-core")
def test_sources_install_without_a_compiler(tmp_path: Path) -> None:
    sources = copy_sources(tmp_path)
    user = make_environment(tmp_path / "user")
    install = ("-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index", str(sources))
    run_python(*install, python=user, CXX="/nowhere/c++")
    file, cpu = report_of(user)
    assert file.startswith(str(tmp_path / "user"))
    assert cpu == "reference (no C++ compiler was found when the package was built)"


def copy_sources(tmp_path: Path) -> Path:
    sources = tmp_path / "sources"
    skipped = shutil.ignore_patterns(".*", "build", "dist", "tests", "__pycache__", "_native*", "runs")
    shutil.copytree(ROOT, sources, ignore=skipped)
    return sources


# ---- Memory safety -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None or sys.platform != "linux", reason="needs GCC or Clang on Linux")
@pytest.mark.parametrize("vector_bytes", [16, 32, 64])
def test_fuzzed_inputs_stay_inside(tmp_path: Path, vector_bytes: int) -> None:
    """The kernels alone, under AddressSanitizer and UndefinedBehaviorSanitizer, on exactly sized memory.

    Each width also agrees with plain loops. 64 bytes: the logic of the AVX-512 kernels, on any machine.
    """
    assert COMPILER is not None
    with open("/proc/cpuinfo") as file:
        fast = ["-mavx2", "-mfma", "-mf16c"] if "avx2" in file.read() else []
    program = tmp_path / "fuzz"
    subprocess.run(
        [
            *(COMPILER, "-std=c++20", "-O1", "-g", "-Wno-psabi", "-fsanitize=address,undefined"),
            *(
                "-fno-sanitize=pointer-overflow",
                "-fno-sanitize-recover=all",
                *(fast if vector_bytes > 16 else []),
            ),
            f"-DDDETR_VECTOR_BYTES={vector_bytes}",
            *("-DDDETR_KERNELS=kernels_tested", '-DDDETR_KERNELS_NAME="tested"', f"-I{CSRC}"),
            *(str(CSRC / "kernel.cpp"), str(Path(__file__).parent / "fuzz_kernels.cpp"), "-o", str(program)),
        ],
        check=True,
    )
    done = subprocess.run([str(program), "2000"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2000 problems" in done.stdout

"""The GPU kernels: on any machine through Triton's interpreter, on a machine with a GPU for real.

The interpreter runs a kernel's programs one after the other, in NumPy: it proves the arithmetic, the masks
and the launch, but no race could show. test_triton_compiled.py looks at what comes out of the compiler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from deformable_detr import ops
from deformable_detr.ops import native
from tests.ops.test_ms_deform_attn import KINDS, RAGGED, SHAPES, WILD, Case, make_case, raw_arguments
from tests.support import triton_interpreter

needs_triton = pytest.mark.skipif(native._TRITON_MISSING is not None, reason=str(native._TRITON_MISSING))
needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device here: the kernels themselves cannot run"
)


def operator_of(case: Case) -> str:
    return "ms_deform_attn" if case.reference is None else "fused_ms_deform_attn"


def output_gradient(case: Case) -> Tensor:
    B, Q, M = case.weights.shape[:3]
    generator = torch.Generator().manual_seed(1)
    return torch.randn(B, Q, M * case.value.shape[3], generator=generator).to(case.value.dtype)


def exact(case: Case, grad_output: Tensor) -> list[Tensor]:
    """Output and gradients of plain PyTorch in float64."""
    case = case.to(torch.float64)
    return [case.reference_run(), *case.gradients(grad_output.double(), Case.reference_run)]


# ---- The interpreter -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Callable[..., Any]]:
    """`interpreted(function, …)`: a function of triton_interpreter.py, called there."""
    pytest.importorskip("triton")
    with triton_interpreter.interpreter() as process:
        yield lambda function, *arguments, **options: process.submit(function, *arguments, **options).result()


def both(interpreted: Callable[..., Any], case: Case, grad_output: Tensor) -> list[Tensor]:
    function = triton_interpreter.forward_and_gradients
    return interpreted(function, operator_of(case), raw_arguments(case), grad_output)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_nested_loops(interpreted: Callable[..., Any], kind: str) -> None:
    case = make_case(kind, Q=3, M=2, per_level=(2, 1, 3))
    grad_output = output_gradient(case)
    output, *grads = both(interpreted, case, grad_output)
    torch.testing.assert_close(output, case.oracle_run(), rtol=0, atol=1e-12)
    for ours, right in zip(grads, exact(case, grad_output)[1:], strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("unfused", {"per_level": (1, 1, 1), "D": 1, "Q": 67}),  # two blocks of queries
        ("points", {"per_level": (1, 0, 3), "D": 16, "Q": 33}),
        ("boxes", {"per_level": (2, 0, 1), "D": 71, "Q": 9}),
        ("unfused", {"per_level": (1, 1), "shapes": ((1, 1), (1, 9)), "D": 600, "Q": 2}),
    ],
    ids=["one channel", "a level without points", "71 channels", "maps of one row"],
)
def test_awkward_sizes_in_float32(interpreted: Callable[..., Any], kind: str, sizes: dict[str, Any]) -> None:
    case = make_case(kind, B=1, M=2, dtype=torch.float32, **sizes)
    grad_output = output_gradient(case)
    for ours, right in zip(both(interpreted, case, grad_output), exact(case, grad_output), strict=True):
        torch.testing.assert_close(ours.double(), right, rtol=1e-4, atol=1e-5 * right.abs().max().item())


@pytest.mark.parametrize(("kind", "dtype"), [("points", torch.bfloat16), ("boxes", torch.float16)])
def test_sixteen_bits_lose_little(interpreted: Callable[..., Any], kind: str, dtype: torch.dtype) -> None:
    """One rounding, or one cut: the interpreter cuts where GPUs round to bfloat16."""
    case = make_case(kind, B=1, M=2, D=8, per_level=(2, 1, 3), dtype=dtype)
    grad_output = output_gradient(case)
    roundings = 2.5 if dtype == torch.bfloat16 else 1.5
    for ours, right in zip(both(interpreted, case, grad_output), exact(case, grad_output), strict=True):
        rounding = (right.to(ours.dtype).double() - right).abs().max()
        assert (ours.double() - right).abs().max() <= roundings * rounding + 1e-5 * right.abs().max()


@pytest.mark.parametrize("kind", ["unfused", "points"])
def test_huge_and_non_finite_points_are_outside(interpreted: Callable[..., Any], kind: str) -> None:
    case = make_case(kind, B=1, M=1, Q=len(WILD), dtype=torch.float32)
    case.points[..., 0] = torch.tensor(WILD).view(1, -1, 1, 1)
    case.points[:, :, :, 1] = case.points[:, :, :, 1].flip(-1)
    output, *grads = both(interpreted, case, output_gradient(case))
    torch.testing.assert_close(output.double(), case.oracle_run(), rtol=1e-5, atol=1e-5)
    if kind == "unfused":
        assert all(bool(each.isfinite().all()) for each in grads)


def test_nan_and_masked_logits(interpreted: Callable[..., Any]) -> None:
    case = make_case("points", B=1, dtype=torch.float32)
    case.weights.mul_(100)
    case.weights[:, :, :, ::2] = -float("inf")
    case.weights[0, 1, 2, 3] = float("nan")
    output = interpreted(triton_interpreter.forward, operator_of(case), raw_arguments(case))
    assert output.view(1, 6, 3, 5)[0, 1, 2].isnan().all()
    torch.testing.assert_close(output, case.reference_run(), rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("empty", ["B", "Q", "M", "D", "P"])
def test_empty(interpreted: Callable[..., Any], kind: str, empty: str) -> None:
    sizes = {"per_level": (0, 0, 0)} if empty == "P" else {empty: 0}
    case = make_case(kind, dtype=torch.float32, **sizes)
    output, *grads = both(interpreted, case, output_gradient(case))
    assert output.shape == output_gradient(case).shape
    assert not output.any()
    for grad, tensor in zip(grads, case.tensors, strict=True):
        assert grad.shape == tensor.shape
        assert not grad.any()


def test_strided_inputs(interpreted: Callable[..., Any]) -> None:
    """Views into memory full of NaN: what reads beside the view shows."""
    case = make_case("boxes", Q=2, M=2, D=4, per_level=(1, 0, 2))
    grad_output = torch.ones(1, dtype=torch.float64).expand(output_gradient(case).shape)

    def spread(tensor: Tensor, dims: int) -> Tensor:
        sizes = [2 * size + 1 if i < dims else size for i, size in enumerate(tensor.shape)]
        wide = torch.full(sizes, float("nan"), dtype=tensor.dtype)
        return wide[tuple(slice(1, None, 2) for _ in range(dims))].copy_(tensor)

    for value in (spread(case.value, 3), spread(case.value, 4)):
        tensors = (value, *(spread(each, each.ndim) for each in case.tensors[1:]))
        strided = case.with_tensors(*tensors)
        for ours, right in zip(
            both(interpreted, strided, grad_output), exact(case, grad_output), strict=True
        ):
            torch.testing.assert_close(ours, right, rtol=1e-10, atol=1e-10)


def test_what_would_read_outside_is_refused(interpreted: Callable[..., Any]) -> None:
    case = make_case(dtype=torch.float32)
    flat = [size for shape in SHAPES for size in shape]

    def refused(message: str, **changes: Any) -> None:
        arguments = {
            "value": case.value,
            "spatial_shapes": flat,
            "locations": case.points,
            "weights": case.weights,
            "points_per_level": RAGGED,
        } | changes
        with pytest.raises(RuntimeError, match=message):
            interpreted(triton_interpreter.forward, "ms_deform_attn", tuple(arguments.values()))

    refused("hold 49 tokens, but value has 48", value=case.value[:, 1:])
    refused("level 0 has size", spatial_shapes=[-5, -7, 3, 4, 1, 2])
    refused("level 0 is too large", spatial_shapes=[2**40, 2**40, 3, 4, 1, 2])
    refused("spatial_shapes must hold H and W for 3 levels", spatial_shapes=flat[:-1])
    refused("points_per_level hold 8 points", points_per_level=(4, 2, 2))
    refused("level 2 has size .* and -2 points", points_per_level=(9, 2, -2))
    refused("points has shape", locations=case.points[:, :, :, :, :1])
    refused("weights has shape", weights=case.weights[:, :, :2])
    refused("points must be torch.float32, not torch.float64", locations=case.points.double())
    refused("value must be float32", value=case.value.int())
    refused(
        "spans more than 2\\^31",
        value=torch.empty(()).expand(2, 49, 2**26, 1),
        weights=torch.empty(()).expand(2, 6, 2**26, 9),
        locations=torch.empty(()).expand(2, 6, 2**26, 9, 2),
    )

    fused = make_case("points", dtype=torch.float32)
    value, shapes, reference, *rest = raw_arguments(fused)
    with pytest.raises(RuntimeError, match="reference has shape"):
        interpreted(triton_interpreter.forward, operator_of(fused), (value, shapes, reference[:, 1:], *rest))
    with pytest.raises(RuntimeError, match="grad_output has shape"):
        interpreted(
            triton_interpreter.forward,
            "fused_ms_deform_attn_backward",
            (output_gradient(fused)[:, 1:], *raw_arguments(fused)),
        )


def test_deterministic_mode_is_refused(interpreted: Callable[..., Any]) -> None:
    """Additions to a pixel come in any order: PyTorch's own operators say so too."""
    case = make_case(dtype=torch.float32, B=1, Q=1, M=1, per_level=(1, 0, 0))
    arguments = operator_of(case), raw_arguments(case), output_gradient(case)
    with pytest.raises(RuntimeError, match="no deterministic kernel for CUDA"):
        interpreted(triton_interpreter.backward_in_mode, *arguments, warn_only=False)
    (warning,) = interpreted(triton_interpreter.warnings_of_backward, *arguments)
    assert "no deterministic kernel for CUDA" in warning


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["unfused", "boxes"])
def test_citizenship_without_the_library(interpreted: Callable[..., Any], kind: str) -> None:
    case = make_case(kind, B=2, Q=1, M=1, D=2, per_level=(1, 0, 1), dtype=torch.float32)
    arguments = operator_of(case), raw_arguments(case), output_gradient(case)
    interpreted(triton_interpreter.check_operators, *arguments)


def test_vmap_without_the_library(interpreted: Callable[..., Any]) -> None:
    case = make_case("points", B=2, Q=1, M=1, D=2, per_level=(1, 0, 1), dtype=torch.float32)
    split = [each.unsqueeze(1) if isinstance(each, Tensor) else each for each in raw_arguments(case)]
    output = interpreted(triton_interpreter.mapped, operator_of(case), split)
    torch.testing.assert_close(output.squeeze(1), case.reference_run(), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not ops.native_available(), reason=ops.kernels()["cpu"])
def test_schemas_are_those_of_the_library(interpreted: Callable[..., Any]) -> None:
    operators = torch.ops.deformable_detr
    here = {name: str(getattr(operators, name).default._schema) for name in native.SCHEMAS}
    assert interpreted(triton_interpreter.schemas) == here


# ---- Dispatch ------------------------------------------------------------------------------------


class _Calls(TorchDispatchMode):
    """Notes the names of the operators called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def run_on_imagined_gpu(kind: str) -> tuple[Tensor, list[str]]:
    """Output, with a shape and no data, and the operators called on the way."""
    case = make_case(kind, dtype=torch.bfloat16)
    with FakeTensorMode(allow_non_fake_inputs=True), _Calls() as calls:
        tensors = (torch.empty(each.shape, dtype=each.dtype, device="cuda") for each in case.tensors)
        output = case.with_tensors(*tensors).run()
    return output, calls.names


@needs_triton
@pytest.mark.parametrize("kind", KINDS)
def test_cuda_tensors_go_to_the_operator(kind: str) -> None:
    output, names = run_on_imagined_gpu(kind)
    assert f"deformable_detr::{'ms_deform_attn' if kind == 'unfused' else 'fused_ms_deform_attn'}" in names
    assert (output.device.type, output.dtype, output.shape) == ("cuda", torch.bfloat16, (2, 6, 15))
    assert ops.kernels()["cuda"] == "Triton"


def test_without_triton_one_warning_and_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_TRITON_MISSING", "Triton is not installed")
    native._warn_once.cache_clear()
    with pytest.warns(ops.NativeOperatorMissing, match="on the GPU .*Triton is not installed"):
        run_on_imagined_gpu("boxes")
    _, names = run_on_imagined_gpu("boxes")  # a second warning would be an error here
    assert "aten::grid_sampler_2d" in names
    assert not any("deformable_detr" in name for name in names)
    assert ops.kernels()["cuda"] == "reference (Triton is not installed)"


# ---- A real GPU ----------------------------------------------------------------------------------


def on_gpu(case: Case) -> Case:
    return case.with_tensors(*(each.cuda() for each in case.tensors))


@needs_gpu
@needs_triton
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sizes", [{"D": 30}, {"D": 32, "Q": 300, "M": 8, "per_level": (4, 4, 4)}])
def test_gpu_equals_the_reference(kind: str, dtype: torch.dtype, sizes: dict[str, Any]) -> None:
    case = make_case(kind, dtype=dtype, **sizes)
    grad_output = output_gradient(case)
    gpu = on_gpu(case)
    found = [gpu.run(), *gpu.gradients(grad_output.cuda(), Case.run)]
    for ours, right in zip(found, exact(case, grad_output), strict=True):
        rounding = (right.to(ours.dtype).double() - right).abs().max()
        assert (ours.cpu().double() - right).abs().max() <= 1.5 * rounding + 1e-5 * right.abs().max()


@needs_gpu
@needs_triton
@pytest.mark.parametrize("kind", KINDS)
def test_gpu_wild_points(kind: str) -> None:
    case = make_case(kind, Q=len(WILD), dtype=torch.float32)
    case.points[..., 0] = torch.tensor(WILD).view(1, -1, 1, 1)
    torch.testing.assert_close(on_gpu(case).run().cpu().double(), case.oracle_run(), rtol=1e-5, atol=1e-5)


@needs_gpu
@needs_triton
@pytest.mark.parametrize("kind", ["unfused", "boxes"])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
def test_gpu_citizenship(kind: str) -> None:
    case = on_gpu(make_case(kind, dtype=torch.float32))
    operator = getattr(torch.ops.deformable_detr, operator_of(case))
    leaves = case.with_tensors(*(each.requires_grad_() for each in case.tensors))
    torch.library.opcheck(operator.default, raw_arguments(leaves))
    compiled = torch.compile(lambda *each: 2 * case.with_tensors(*each).run(), fullgraph=True)
    torch.testing.assert_close(compiled(*case.tensors), 2 * case.run())


@needs_gpu
@needs_triton
def test_gpu_is_the_tensors_own_and_graphs_capture_it() -> None:
    device = torch.device("cuda", torch.cuda.device_count() - 1)  # not the current one, if there are two
    case = make_case("points", dtype=torch.float32)
    case = case.with_tensors(*(each.to(device) for each in case.tensors))
    with torch.no_grad():
        expected = case.run()
        assert expected.device == device
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(device), torch.cuda.graph(graph):
            output = case.run()
        graph.replay()
    torch.testing.assert_close(output, expected)


@needs_gpu
@needs_triton
def test_gpu_deterministic_mode_is_refused() -> None:
    case = on_gpu(make_case(dtype=torch.float32))
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError, match="no deterministic kernel for CUDA"):
            replace(case).gradients(torch.ones_like(case.run()), Case.run)
    finally:
        torch.use_deterministic_algorithms(False)

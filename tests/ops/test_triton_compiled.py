"""What the GPU kernels become: compiled ahead of time for GPUs that are not here, and looked at.

The launchers of ops/triton_operators.py run as they would on a GPU, up to the launch: a driver that only
names a target stands in for CUDA's. So the kernels are compiled with the very constants, alignments and
specialisations that a user's call leads to.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ops.test_ms_deform_attn import SHAPES, Case, make_case, raw_arguments

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime import driver  # noqa: E402

from deformable_detr.ops import triton_kernels, triton_operators  # noqa: E402

CAPABILITIES = {"A100": 80, "H100": 90, "B200": 100}
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


class _TargetOnly:
    """A driver for a GPU that is not here. Kernels are cached by device, so each target is another device."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 1000 + self.capability

    def get_current_stream(self, device: int) -> int:
        return 0


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """`compiled(gpu, call)`: the kernel that `call()` launches, which then is not launched."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(driver, "_active", None)  # put back afterwards
    kernels: list[Any] = []
    for kernel in (triton_kernels.forward_kernel, triton_kernels.backward_kernel):

        def compile_only(*arguments: Any, run: Any = kernel.run, **options: Any) -> None:
            kernels.append(run(*arguments, **{**options, "warmup": True}))

        monkeypatch.setattr(kernel, "run", compile_only)

    def compiled(gpu: str, call: Callable[[], Any]) -> Any:
        driver.set_active(_TargetOnly(CAPABILITIES[gpu]))
        call()
        return kernels[-1]

    return compiled


def forward(case: Case) -> None:
    operator = (
        triton_operators.ms_deform_attn if case.reference is None else triton_operators.fused_ms_deform_attn
    )
    operator(*raw_arguments(case))


def backward(case: Case) -> None:
    operator = (
        triton_operators.ms_deform_attn_backward
        if case.reference is None
        else triton_operators.fused_ms_deform_attn_backward
    )
    B, Q, M = case.weights.shape[:3]
    operator(torch.empty(B, Q, M * case.value.shape[3], dtype=case.value.dtype), *raw_arguments(case))


PASSES = {"forward": forward, "backward": backward}


def paper_case(kind: str, dtype: torch.dtype) -> Case:
    """Heads, channels and points of the paper; small maps."""
    return make_case(
        kind, Q=50, M=8, D=32, per_level=(4, 4, 4, 4), shapes=((13, 17), (7, 9), (4, 5), (2, 3)), dtype=dtype
    )


def count(pattern: str, kernel: Any) -> int:
    return len(re.findall(pattern, kernel.asm["ptx"]))


def stack_bytes(kernel: Any, tmp_path: Path) -> int:
    """Local memory of a thread: what did not fit into registers."""
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(kernel.asm["cubin"])
    usage = subprocess.run(
        [CUOBJDUMP, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True
    ).stdout
    return sum(int(each) for each in re.findall(r"\b(?:STACK|LOCAL):(\d+)", usage))


QUICK = {("H100", torch.bfloat16, "forward", "boxes"), ("H100", torch.float32, "backward", "unfused")}
ALL = [
    pytest.param(*each, marks=() if each in QUICK else pytest.mark.slow)
    for each in (
        (gpu, dtype, direction, kind)
        for gpu in CAPABILITIES
        for dtype in (torch.float32, torch.bfloat16)
        for direction in PASSES
        for kind in ("unfused", "points", "boxes")
    )
]


@pytest.mark.parametrize(("gpu", "dtype", "direction", "kind"), ALL)
def test_wide_loads_and_hardly_a_spill(
    compiled: Callable[..., Any], tmp_path: Path, gpu: str, dtype: torch.dtype, direction: str, kind: str
) -> None:
    kernel = compiled(gpu, lambda: PASSES[direction](paper_case(kind, dtype)))
    # Four pixels of a point, in the loop of each of four levels. Every thread reads 16 bytes at once; in the
    # backward pass as many channels as make 16 bytes of gradient.
    vector = "v2" if (dtype, direction) == (torch.bfloat16, "backward") else "v4"
    assert count(rf"ld\.global\.{vector}\.b32", kernel) >= 16
    assert count(r"ld\.global\.(b16|b8)\b", kernel) == 0
    assert count(r"\.local\b", kernel) == 0
    # For a rounder number of registers ptxas keeps a few numbers outside from beginning to end.
    assert stack_bytes(kernel, tmp_path) <= 16
    if direction == "forward":
        # Points are located where they are used: threads do not wait for each other.
        assert kernel.metadata.shared == 0
        assert count(r"bar\.sync", kernel) == 0
    elif gpu == "A100":
        assert count(r"(atom|red)\.global\.gpu\.relaxed\.add\.f32", kernel) > 0
    else:
        assert count(r"(atom|red)\.global\.gpu\.relaxed\.add\.v4\.f32", kernel) >= 16
        assert count(r"(atom|red)\.global\.gpu\.relaxed\.add\.f32", kernel) == 0


def test_other_pictures_need_no_other_kernel(compiled: Callable[..., Any]) -> None:
    """Triton would compile again for sizes that are 1 or that 16 divides, were they passed as integers."""
    kernels = set()
    for Q, shapes in ((50, ((16, 32), (1, 1))), (64, ((5, 7), (3, 4))), (1, ((1, 16), (48, 1)))):
        case = make_case(Q=Q, M=2, D=8, per_level=(1, 1), shapes=shapes)
        kernels.add(id(compiled("H100", partial(forward, case))))
    assert len(kernels) == 1


@pytest.mark.slow
@pytest.mark.parametrize("direction", PASSES)
@pytest.mark.parametrize("kind", ["unfused", "boxes"])
@pytest.mark.parametrize(
    ("dtype", "sizes"),
    [
        (torch.float64, {"per_level": (4, 2, 3)}),
        (torch.float32, {"per_level": (1, 0, 20), "D": 30}),
        (torch.float16, {"M": 1, "D": 1, "per_level": (1, 1, 1)}),
        (torch.bfloat16, {"D": 600}),
    ],
    ids=["float64", "ragged", "one channel", "600 channels"],
)
def test_awkward_sizes_compile(
    compiled: Callable[..., Any], direction: str, kind: str, dtype: torch.dtype, sizes: dict[str, Any]
) -> None:
    for gpu in CAPABILITIES:
        kernel = compiled(
            gpu, lambda: PASSES[direction](make_case(kind, dtype=dtype, shapes=SHAPES, **sizes))
        )
        assert "cubin" in kernel.asm

"""Step (a): the operator against float64 oracles, the tests that need a GPU, and compute-sanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor

from ..benchmark.operators import COCO_LEVELS
from .op_cases import KINDS, Call, make_call, strided, with_wild_points
from .report import Facts, Job, relative_error, require

# Bounds of ‖out − ref‖ / ‖ref‖. Kernels compute in float32 (float64 for float64), so a 16-bit result is off
# by one rounding only. Gradients of points and weights are float32 unless the value is float64.
BOUNDS = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 3e-3, torch.float16: 5e-4}
BOUND_OF_REAL = {torch.float64: 1e-11, torch.float32: 1e-4, torch.bfloat16: 1e-4, torch.float16: 1e-4}
WORKERS = 6
TEST_WORKERS = 3
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)  # in order of value
TESTS = ("tests/ops/test_triton_kernels.py", "tests/inference/cuda/test_runner.py")


def run(job: Job) -> None:
    tests = _start_tests(job)
    sanitizer = _start_sanitizer(job) if job.on_gpu else None
    dtypes = (torch.float32, torch.bfloat16) if job.quick else DTYPES
    combinations = [(kind, dtype) for dtype in dtypes for kind in KINDS]
    queries = 40 if job.quick else 300
    check = partial(findings_of, device=job.device, seed=job.seed, queries=queries)
    if job.on_gpu:
        # In parallel, because compiling takes time; in processes, because an error may end the GPU's context.
        pool = ProcessPoolExecutor(WORKERS, get_context("spawn"), max_tasks_per_child=2)
        waiting = {each: pool.submit(check, *each) for each in combinations}
        for (kind, dtype), future in waiting.items():
            body = partial(_take, partial(_result_in_time, job, future))
            job.report.find(f"{kind} {_short(dtype)}", body)
        pool.shutdown(wait=False, cancel_futures=True)
    else:
        for kind, dtype in combinations:
            job.report.find(f"{kind} {_short(dtype)}", partial(_take, partial(check, kind, dtype)))
    dtypes_at_full_size = (torch.float32, torch.bfloat16)
    for dtype in dtypes_at_full_size if job.on_gpu else ():
        job.report.find(f"encoder at 800x1066 {_short(dtype)}", partial(_full_size, job, dtype))
    if job.on_gpu:
        job.report.find("compute-sanitizer memcheck", partial(_sanitizer, job, sanitizer))
    job.report.find("tests that need a GPU", partial(_tests, job, tests))


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# ---- Against the oracle --------------------------------------------------------------------------


def _take(result: Callable[[], Facts], finding: Facts) -> None:
    finding.update(result())


def _result_in_time(job: Job, future: Future[Facts]) -> Facts:
    return future.result(max(job.report.time_left() - 20, 1))


def findings_of(kind: str, dtype: torch.dtype, *, device: torch.device, seed: int, queries: int) -> Facts:
    """Compare all variants of one kind and type with the oracle, and return the finding."""
    finding: Facts = {"ok": True, "errors": {}}
    generator = torch.Generator(device).manual_seed(seed + 1000 * KINDS.index(kind))
    call = make_call(kind, dtype, generator, Q=queries)
    _compare(finding, "regular", call, call)
    _compare(finding, "strided", strided(call), call)
    wild, outside = with_wild_points(call)
    _compare(finding, "wild", wild, outside, only_output=kind != "unfused")
    ragged = make_call(kind, dtype, generator, Q=77, per_level=(4, 2, 0, 3))
    _compare(finding, "ragged", ragged, ragged)
    narrow = make_call(kind, dtype, generator, Q=45, M=3, D=30, per_level=(2, 2, 2, 2))
    _compare(finding, "30 channels", narrow, narrow)
    if device.type == "cuda" and dtype == torch.float32:
        from deformable_detr.ops.triton_operators import Tile, forced_tile

        with forced_tile(Tile(queries=16, warps=4, unroll=2)):
            _compare(finding, "another cut", call, call)
    for name, sizes in (("no image", {"B": 0}), ("no query", {"Q": 0})):
        empty = make_call(kind, dtype, generator, **sizes)  # type: ignore[arg-type]
        found = empty.run()
        require(finding, not found["grad_value"].any(), f"{name}: the gradient of value is not zero")
    return finding


def _compare(finding: Facts, variant: str, call: Call, exact: Call, *, only_output: bool = False) -> None:
    """Compare our operator on `call` with float64 on `exact`.

    Outputs are allocated in memory full of NaN, so elements that are not written are detected.
    """
    right = exact.run(exact=True)
    _poison(call.value)
    found = call.run()
    real = torch.float64 if call.value.dtype == torch.float64 else torch.float32
    errors: dict[str, float] = {}
    for name, tensor in found.items():
        if only_output and name != "output":
            continue  # a wild offset times a gradient of zero is NaN, and so is its reference's gradient
        narrow = name in ("output", "grad_value")
        bound = (BOUNDS if narrow else BOUND_OF_REAL)[call.value.dtype]
        errors[name] = relative_error(tensor, right[name])
        if not errors[name] <= bound:
            require(finding, False, f"{variant}: {name} is off by {errors[name]:.2e}, more than {bound:.0e}")
        expected = call.value.dtype if narrow else real
        require(finding, tensor.dtype == expected, f"{variant}: {name} is {tensor.dtype}")
    finding["errors"][variant] = errors


def _poison(like: Tensor) -> None:
    """Fill the memory in which the next outputs are allocated with NaN."""
    if like.device.type == "cuda":
        for numbers in (2**16, 2**20, 2**23):
            torch.full((numbers,), float("nan"), device=like.device)


def _full_size(job: Job, dtype: torch.dtype, finding: Facts) -> None:
    """Compare the encoder's call on a COCO image with PyTorch's grid_sample in float64, on the GPU."""
    finding["errors"] = {}
    generator = torch.Generator(job.device).manual_seed(job.seed)
    tokens = sum(height * width for height, width in COCO_LEVELS)
    call = make_call("points", dtype, generator, B=1, Q=tokens, levels=COCO_LEVELS)
    _compare(finding, "regular", call, call)
    again = [call.run() for _ in range(2)]
    require(finding, torch.equal(again[0]["output"], again[1]["output"]), "two forward passes differ: a race")
    finding["grad_value_between_two_runs"] = relative_error(again[0]["grad_value"], again[1]["grad_value"])


# ---- The project's own tests ---------------------------------------------------------------------


def _start_tests(job: Job) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pytest", *TESTS, "-k", "gpu", "-q", "-p", "no:cacheprovider"]
    # Other versions of the packages than the project's give other warnings.
    command += ["-o", "filterwarnings=default", f"--junitxml={job.work / 'tests.xml'}"]
    if job.on_gpu and find_spec("xdist"):
        command += ["-n", str(TEST_WORKERS)]
    return _start(command)


def _start(command: list[str], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **environment},
    )


def _output_of(process: subprocess.Popen[str], seconds: float) -> str:
    try:
        text, _ = process.communicate(timeout=max(seconds, 1.0))
    except subprocess.TimeoutExpired:
        process.kill()
        text, _ = process.communicate()
        raise TimeoutError(f"not done in time; it said: {text[-500:]}") from None
    return text


def _tests(job: Job, process: subprocess.Popen[str], finding: Facts) -> None:
    text = _output_of(process, job.report.time_left() - 4)
    suite = ElementTree.parse(job.work / "tests.xml").getroot().find("testsuite")
    assert suite is not None
    counts = {name: int(suite.get(name, "0")) for name in ("tests", "failures", "errors", "skipped")}
    finding.update(counts)
    failed = counts["failures"] + counts["errors"]
    require(finding, failed == 0 and process.returncode == 0, f"{failed} tests failed")
    if job.on_gpu:
        require(finding, counts["skipped"] == 0, f"{counts['skipped']} tests were skipped on a GPU")
    if not finding["ok"]:
        finding["output"] = text[-6000:].splitlines()


# ---- compute-sanitizer ---------------------------------------------------------------------------


def _start_sanitizer(job: Job) -> subprocess.Popen[str] | None:
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(tool).exists():
        return None
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9", sys.executable]
    # Every tensor is in a separate allocation, so a read outside it is detected.
    return _start(
        [*command, "-m", "experiments.gpu", "small-calls", "--seed", str(job.seed)],
        PYTORCH_NO_CUDA_MEMORY_CACHING="1",
    )


def small_calls(seed: int) -> None:
    """Run forward and backward of small calls on the GPU, to be watched by compute-sanitizer."""
    generator = torch.Generator("cuda").manual_seed(seed)
    for kind, dtype in (("unfused", torch.float32), ("points", torch.bfloat16), ("boxes", torch.float32)):
        make_call(kind, dtype, generator, B=2, Q=37, M=3, D=30, per_level=(2, 0, 3, 1)).run()
        torch.cuda.synchronize()
    print("small calls are done")


def _sanitizer(job: Job, process: subprocess.Popen[str] | None, finding: Facts) -> None:
    if process is None:
        finding["skipped"] = "there is no compute-sanitizer here"
        return
    text = _output_of(process, job.report.time_left() - 12)
    finding["output"] = text.strip().splitlines()[-12:]
    require(finding, "small calls are done" in text, "the calls did not run under compute-sanitizer")
    require(finding, process.returncode == 0, f"compute-sanitizer ended with {process.returncode}")

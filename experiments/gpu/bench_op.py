"""Step (e): the operator's time compared with its peers' and with its floor, and the best cut of a launch."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch

from ..benchmark import operators
from ..benchmark.operators import (
    BF16,
    BF16_HEAD_MAJOR,
    CASES,
    EAGER,
    FUSED,
    FUSED_HEAD_MAJOR,
    GRID_SAMPLE,
    QUICK_CASES,
    TORCH_MSDA,
    TRANSFORMERS,
    UNFUSED,
    Case,
    Inputs,
    make_inputs,
)
from .clock import graph_ms, median_ms
from .machine import measured_rates
from .report import Facts, Job

NAMES = (
    GRID_SAMPLE,
    TRANSFORMERS,
    TORCH_MSDA,
    UNFUSED,
    EAGER,
    FUSED,
    FUSED_HEAD_MAJOR,
    BF16,
    BF16_HEAD_MAJOR,
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PASSES = ("forward", "backward")


def run(job: Job) -> None:
    rates = job.report.find("measured rates", partial(_rates, job))
    cases = QUICK_CASES if job.quick else CASES
    found: dict[str, dict[str, Facts]] = {}
    for case in cases:
        inputs = make_inputs(case).to(job.device)
        found[case.name] = {
            name: job.report.find(f"{case.name}: {name}", partial(_times, job, inputs, name))
            for name in NAMES
        }
        job.report.find(f"{case.name}: floor", partial(_floor, case, rates))
    job.report.find("targets", partial(_targets, found))
    if job.on_gpu and job.sweep:
        for case in cases:
            inputs = make_inputs(case).to(job.device)
            for which in PASSES:
                for dtype in DTYPES:
                    name = f"cuts: {case.name} {which} {dtype}"
                    job.report.find(name, partial(_sweep, job, inputs, which, dtype), needs_seconds=3)


def _rates(job: Job, finding: Facts) -> None:
    finding.update(measured_rates(job.device, job.quick))


# ---- Against others ------------------------------------------------------------------------------


def _times(job: Job, inputs: Inputs, name: str, finding: Facts) -> None:
    """Measure an operator's time, in milliseconds, and its peak memory.

    On a GPU, `…_graph_ms` is the time without the host, with a cache that is as warm as the inputs allow, and
    `…_ms` is the time with a cold cache.
    """
    try:
        forward = operators.forward_of(name, inputs)
        both = operators.forward_backward_of(name, inputs)
        forward()
    except ImportError as error:
        finding["skipped"] = str(error)
        return
    for which, call in (("forward", forward), ("forward_backward", both)):
        finding[f"{which}_ms"] = median_ms(call, job.device, quick=job.quick, cold_cache=job.on_gpu)
        if job.on_gpu:
            try:
                finding[f"{which}_graph_ms"] = graph_ms(call, job.device)
            except RuntimeError as error:  # the code of some peers cannot be captured
                finding[f"{which}_graph_error"] = str(error)[:200]
    if job.on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        both()
        finding["peak_bytes"] = torch.cuda.max_memory_allocated() - before
    gc.collect()


def _floor(case: Case, rates: Facts, finding: Facts) -> None:
    """Compute the minimum times: for reading each input once and writing each output once at the measured
    bandwidth, and for all multiply-adds at the measured rate of fp32. `gathered_bytes` is the size of the
    four pixels of all points, which come from caches at best."""
    Q, M, D, K, L = case.queries or case.tokens, case.heads, case.channels, case.points, len(case.levels)
    for name, size in (("float32", 4), ("bfloat16", 2)):
        value, points = case.tokens * M * D * size, Q * M * L * K * 3 * 4 + Q * L * 2 * 4
        output, gathered = Q * M * D * size, 4 * Q * M * L * K * D * size
        operations = 2 * 5 * Q * M * L * K * D
        finding[name] = {
            "bytes": value + points + output,
            "gathered_bytes": gathered,
            "operations": operations,
            "memory_ms": (value + points + output) / rates["memory_bytes_per_second"] * 1e3,
            "gathered_from_cache_ms": gathered / rates["cache_bytes_per_second"] * 1e3,
            "arithmetic_ms": operations / rates["fp32_operations_per_second"] * 1e3,
        }


def _targets(found: dict[str, dict[str, Facts]], finding: Facts) -> None:
    """Compute how many times faster our operators are in the encoder's case.

    The times are those of the graphs if both operators have them.
    """
    encoder = found["encoder"]

    def times_faster(ours: str, theirs: str, which: str) -> float | None:
        for kind in ("_graph_ms", "_ms"):
            mine, other = encoder[ours].get(which + kind), encoder[theirs].get(which + kind)
            if mine and other:
                return float(other / mine)
        return None

    for theirs in (GRID_SAMPLE, TRANSFORMERS, TORCH_MSDA):
        for ours in (UNFUSED, FUSED, BF16):
            for which in ("forward", "forward_backward"):
                finding[f"{ours} over {theirs}, {which}"] = times_faster(ours, theirs, which)


# ---- How a launch is cut -------------------------------------------------------------------------


def cuts(which: str, dtype: str) -> Iterator[tuple[int, int, int]]:
    """Yield the cuts to measure as (queries, warps, unroll). A thread takes 16, 32 or 64 bytes of the
    channels of its queries. An unrolled kernel takes three times as long to compile, so only those that are
    likely to win are included."""
    bytes_of_element = 2 if dtype == "bfloat16" and which == "forward" else 4
    for unroll in (1, 4 if which == "forward" else 2):
        for warps in (1, 2, 4, 8) if unroll == 1 else (2, 4, 8):
            for vectors in (1, 2, 4) if unroll == 1 else (1, 2):
                queries = warps * vectors * 16 // bytes_of_element
                if queries <= 64:
                    yield queries, warps, unroll


def launch_of(inputs: Inputs, which: str, dtype: torch.dtype, tile: Any) -> Any:
    """Return a call of our fused operator's kernel with the cut `tile`; None means the usual cut."""
    from deformable_detr.ops.triton_operators import forced_tile

    name = operators.BF16 if dtype == torch.bfloat16 else operators.FUSED
    forward = operators.forward_of(name, inputs)
    backward = operators.fused_backward_of(inputs, dtype)

    def call() -> None:
        with forced_tile(tile) if tile is not None else nullcontext():
            (forward if which == "forward" else backward)()

    return call


def _sweep(job: Job, inputs: Inputs, which: str, dtype: str, finding: Facts) -> None:
    from deformable_detr.ops.triton_operators import Tile

    times: dict[str, Any] = {}
    usual = launch_of(inputs, which, DTYPES[dtype], None)
    finding["usual_ms"] = graph_ms(usual, job.device, calls=4)
    for queries, warps, unroll in cuts(which, dtype):
        if job.report.time_left() < 2:
            finding["cut_short"] = True
            break
        name = f"{queries} queries, {warps} warps, unroll {unroll}"
        try:
            call = launch_of(inputs, which, DTYPES[dtype], Tile(queries, warps, unroll))
            times[name] = {"ms": graph_ms(call, job.device, calls=4, budget_ms=30)}
        except Exception as error:  # such as too many registers; other cuts may succeed
            times[name] = {"error": str(error)[:160]}
    measured = {name: each["ms"] for name, each in times.items() if "ms" in each}
    finding["best"] = min(measured, key=lambda name: measured[name]) if measured else None
    finding["best_ms"] = min(measured.values(), default=None)
    finding["cuts"] = {name: each.get("ms", each.get("error")) for name, each in times.items()}


def compile_cuts(part: int, parts: int) -> None:
    """Compile one of the `parts` parts of all cuts, so that the sweep finds them in Triton's cache. A kernel
    serves every size of maps and every number of queries."""
    from deformable_detr.ops.triton_operators import Tile

    small = Case("warm", ((8, 8), (4, 4), (2, 2), (1, 1)), None)
    inputs = make_inputs(small).to(torch.device("cuda"))
    everything = [(which, dtype, cut) for which in PASSES for dtype in DTYPES for cut in cuts(which, dtype)]
    for which, dtype, cut in everything[part::parts]:
        try:
            launch_of(inputs, which, DTYPES[dtype], Tile(*cut))()
            torch.cuda.synchronize()
        except Exception as error:
            print(f"{which} {dtype} {cut}: {error}")


def launch_kernels() -> None:
    """Run forward and backward of the encoder's case in float32 and bfloat16, to be watched by ncu."""
    inputs = make_inputs(CASES[0]).to(torch.device("cuda"))
    for dtype in DTYPES.values():
        for which in PASSES:
            launch_of(inputs, which, dtype, None)()
    torch.cuda.synchronize()

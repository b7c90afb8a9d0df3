"""The stop-watch. A GPU runs asynchronously to the host, so it is timed by events in its queue."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

CACHE_BYTES = 2**28  # more than any L2 cache


def median_ms(
    call: Callable[[], Any],
    device: torch.device,
    *,
    quick: bool = False,
    budget_ms: float = 200.0,
    cold_cache: bool = False,
) -> float:
    """Return the median milliseconds of one call.

    On a GPU, it is the median of as many calls as fit into `budget_ms`, from 5 to 200. On a CPU, it is the
    median of 5 calls, or of 2 if `quick`.

    If `cold_cache` is True, the L2 cache is filled with other data before each call. This also keeps the GPU
    busy while the host launches the call, so that only the GPU's time is measured.
    """
    if device.type != "cuda":
        call()
        return statistics.median(once_ms(call, device) for _ in range(2 if quick else 5))
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    filling = torch.empty(CACHE_BYTES // 4, dtype=torch.int32, device=device) if cold_cache else None
    repeats = max(5, min(200, int(budget_ms / max(once_ms(call, device), 1e-3))))
    events = [(_event(), _event()) for _ in range(repeats)]
    for before, after in events:
        if filling is not None:
            filling.zero_()
        before.record()
        call()
        after.record()
    torch.cuda.synchronize()
    return statistics.median(float(before.elapsed_time(after)) for before, after in events)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)


def once_ms(call: Callable[[], Any], device: torch.device) -> float:
    """Return the milliseconds of one call, with the GPU's work."""
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) * 1e3


def host_ms(call: Callable[[], Any], *, repeats: int = 10) -> float:
    """Return the median milliseconds until the host has launched one call. The GPU's work is not included,
    unless the call waits for it."""
    call()
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        started = time.perf_counter()
        call()
        times.append((time.perf_counter() - started) * 1e3)
    torch.cuda.synchronize()
    return statistics.median(times)


def captured(call: Callable[[], Any], calls: int = 1) -> torch.cuda.CUDAGraph:
    """Return a CUDA graph of `calls` calls. Its replay takes the GPU's time and almost none of the host's."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # first calls allocate and compile, which a graph cannot capture
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    return graph


def graph_ms(
    call: Callable[[], Any], device: torch.device, calls: int = 10, budget_ms: float = 200.0
) -> float:
    """Return the median milliseconds of one call, replayed from a CUDA graph of `calls` calls."""
    graph = captured(call, calls)
    return median_ms(graph.replay, device, budget_ms=budget_ms) / calls

"""The stop-watch. A GPU works behind the host's back: it is timed by events in its own queue."""

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
    """Median milliseconds of one call, over as many as fit into `budget_ms`, at least five.

    `cold_cache`: before each call the L2 cache is filled with something else. That also keeps the GPU busy
    while the host launches the call, so that the time is the GPU's alone.
    """
    if device.type != "cuda":
        return _median_on_cpu(call, repeats=2 if quick else 5)
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    filling = torch.empty(CACHE_BYTES // 4, dtype=torch.int32, device=device) if cold_cache else None
    started = time.perf_counter()
    call()
    torch.cuda.synchronize()
    once_ms = (time.perf_counter() - started) * 1e3
    repeats = max(5, min(200, int(budget_ms / max(once_ms, 1e-3))))
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


def _median_on_cpu(call: Callable[[], Any], repeats: int) -> float:
    call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times)


def host_ms(call: Callable[[], Any], *, repeats: int = 10) -> float:
    """Median milliseconds until the host has launched one call: what a step costs the host, without the GPU's
    work unless the call waits for it."""
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
    """`calls` calls as one CUDA graph: its replay takes the GPU's time and nearly none of the host's."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # what runs for the first time allocates and compiles: not in a graph
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
    """Median milliseconds of one call, replayed from a CUDA graph of several."""
    graph = captured(call, calls)
    return median_ms(graph.replay, device, budget_ms=budget_ms) / calls

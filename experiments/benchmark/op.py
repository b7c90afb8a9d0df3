"""`python -m experiments.benchmark op`: the operator against its peers and against a measured limit.

The forward pass, and forward and backward together, are timed for the cases in `operators.py`, with all
operators taking turns. Then memory is measured, and the project's targets are listed as met or missed. Every
operator is first checked against the reference.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console

from deformable_detr import ops
from deformable_detr.cli.options import Parser
from deformable_detr.errors import UserError
from deformable_detr.system.allocator import keep_large_buffers

from .measure import (
    TURN_SECONDS,
    Timing,
    alternate,
    chosen_peers,
    machine,
    peak_memory,
    write_report,
)
from .operators import (
    BF16,
    BF16_HEAD_MAJOR,
    CASES,
    EAGER,
    FIRST_CACHE,
    FUSED,
    GRID_SAMPLE,
    OPERATORS,
    PEERS,
    QUICK_CASES,
    SECOND_CACHE,
    TORCH_MSDA,
    TRANSFORMERS,
    UNFUSED,
    Case,
    forward_backward_of,
    forward_of,
    fused_backward_of,
    limit_of,
    make_inputs,
    saved_bytes,
)
from .tables import print_participants, table

FORWARD, BACKWARD, FORWARD_BACKWARD = "forward", "backward", "forward_backward"
LIMIT, LIMIT_BF16 = "limit", "limit bf16"
LIMIT_L2, LIMIT_L2_BF16 = "limit, 2nd cache", "limit bf16, 2nd cache"

# (our operator, its limits with rows in the first and in the second cache, type)
LIMITED = (
    (FUSED, (LIMIT, LIMIT_L2), torch.float32),
    (BF16, (LIMIT_BF16, LIMIT_L2_BF16), torch.bfloat16),
)

# (operator, pass) → its timing, for one case and number of threads.
Timings = dict[tuple[str, str], Timing]


def add_arguments(parser: Parser) -> None:
    parser.option(
        "--against",
        str | None,
        None,
        f"Operators to compare with, of {', '.join(PEERS)}. Default: all that are installed.",
        shown="NAME,…",
    )
    parser.option(
        "--threads", str, "1,all", "Numbers of threads to measure with; all: every core.", shown="N,…"
    )
    parser.option("--repeats", int, 11, "How often each operator is timed.")
    parser.option(
        "--output", str | None, None, "Write everything that was measured as JSON here.", shown="FILE"
    )
    parser.flag("--keep-buffers", "Let glibc keep large buffers, as in this package's own processes.")
    parser.flag("--quick", "Use tiny sizes, only to see that everything works.")


def run(arguments: Namespace) -> None:
    benchmark_op(**vars(arguments), console=Console())


def benchmark_op(
    *,
    against: str | None,
    threads: str,
    repeats: int,
    output: str | None,
    keep_buffers: bool,
    quick: bool,
    console: Console,
) -> dict[str, Any]:
    """Measure, print tables to `console`, write `output` if given, and return what was written.

    Raises:
        UserError: if a peer is unknown, a number is invalid, the native operator is not installed, or
            `keep_buffers` is True on a system without glibc.
        RuntimeError: if an operator's results are wrong.
    """
    if repeats < 1:
        raise UserError(f"--repeats {repeats}: at least 1 is needed.")
    if not ops.native_available():
        raise UserError(f"the native operator is not there to be measured: {ops.kernels()['cpu']}.")
    thread_counts = _thread_counts(threads)
    installed, missing = chosen_peers(against, PEERS)
    peers = load_rivals(installed, missing)
    names = [name for name in OPERATORS if name not in PEERS or name in peers]
    if keep_buffers and not keep_large_buffers():
        raise UserError("--keep-buffers: this system's C library is not glibc; leave the option out.")

    report: dict[str, Any] = {
        "benchmark": "op",
        "machine": machine(),
        "settings": {
            "repeats": repeats,
            "threads": thread_counts,
            "keep_buffers": keep_buffers,
            "quick": quick,
        },
        "cases": [asdict(case) for case in (QUICK_CASES if quick else CASES)],
        "peers": peers,
        "missing_peers": missing,
    }
    print_participants(console, report["machine"], report["peers"], report["missing_peers"])
    cases = QUICK_CASES if quick else CASES
    report["errors"] = {case.name: errors_of(case, names) for case in cases}
    timings: dict[tuple[str, int], Timings] = {}
    for case in cases:
        for count in thread_counts:
            timings[case.name, count] = _times(case, names, count, repeats, 0.0 if quick else TURN_SECONDS)
            _print_times(case, count, names, timings[case.name, count], console)
    report["timings"] = list(_timing_rows(timings))
    report["memory"] = [_memory(cases[0], name, measure_peak=not quick) for name in names]
    _print_memory(cases[0], report["memory"], console)
    targets = [] if quick else targets_of(timings, report["memory"], max(thread_counts))
    report["targets"] = [{**asdict(target), "met": target.met} for target in targets]
    if targets:
        _print_targets(targets, max(thread_counts), console)
    if output is not None:
        write_report(output, report)
        console.print(f"written: {output}")
    return report


def _thread_counts(text: str) -> list[int]:
    counts = []
    for word in text.split(","):
        if word.strip() != "all" and not (word.strip().isdecimal() and int(word) >= 1):
            raise UserError(f"--threads {text}: must be numbers from 1, or all, with commas between.")
        counts.append(torch.get_num_threads() if word.strip() == "all" else int(word))
    return sorted(set(counts))


def load_rivals(installed: dict[str, str], missing: dict[str, str]) -> dict[str, str]:
    """Return the installed peers that can be imported, with their versions, and add the others to `missing`.

    A C++ extension that was built for another version of torch cannot be imported.
    """
    inputs, peers = make_inputs(QUICK_CASES[0]), {}
    for name, version in installed.items():
        try:
            OPERATORS[name](inputs)
        except (ImportError, OSError, RuntimeError) as error:
            missing[name] = f"version {version} cannot be loaded: {' '.join(str(error).split())}"
        else:
            peers[name] = version
    return peers


# ---- Measuring -----------------------------------------------------------------------------------


def errors_of(case: Case, names: Sequence[str]) -> dict[str, float]:
    """Return each operator's largest difference from the reference, relative to the reference's maximum.

    Raises:
        RuntimeError: if an operator's results are wrong, because they are not worth timing.
    """
    inputs = make_inputs(case)
    expected = forward_of(GRID_SAMPLE, inputs)()
    errors = {}
    for name in names:
        found = forward_of(name, inputs)().float()
        errors[name] = float((found - expected).abs().max() / expected.abs().max())
        allowed = 2e-2 if name in (BF16, BF16_HEAD_MAJOR) else 1e-4
        if not errors[name] <= allowed:
            raise RuntimeError(f"{name} is off by {errors[name]:.1e} in the {case.name} case: not timed.")
    return errors


def _times(case: Case, names: Sequence[str], threads: int, repeats: int, turn_seconds: float) -> Timings:
    inputs = make_inputs(case)
    calls: dict[tuple[str, str], Callable[[], object]] = {}
    for name in names:
        calls[name, FORWARD] = forward_of(name, inputs)
        calls[name, FORWARD_BACKWARD] = forward_backward_of(name, inputs)
    for ours, limits, dtype in LIMITED:
        calls[ours, BACKWARD] = fused_backward_of(inputs, dtype)
        for limit, stretches in zip(limits, (FIRST_CACHE, SECOND_CACHE), strict=True):
            calls[limit, FORWARD], calls[limit, BACKWARD] = limit_of(case, dtype, stretches)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return alternate(calls, repeats=repeats, turn_seconds=turn_seconds)
    finally:
        torch.set_num_threads(before)


def _timing_rows(timings: dict[tuple[str, int], Timings]) -> Iterator[dict[str, Any]]:
    for (case, threads), by_call in timings.items():
        for (operator, what), timing in by_call.items():
            yield {"case": case, "threads": threads, "operator": operator, "pass": what, **timing.to_dict()}


def _memory(case: Case, name: str, *, measure_peak: bool) -> dict[str, Any]:
    rise = {
        what: peak_memory(_prepared, case, name, what).rise if measure_peak else None
        for what in (FORWARD, FORWARD_BACKWARD)
    }
    return {
        "case": case.name,
        "operator": name,
        "saved_bytes": saved_bytes(name, make_inputs(case)),
        "forward_peak_bytes": rise[FORWARD],
        "forward_backward_peak_bytes": rise[FORWARD_BACKWARD],
    }


def _prepared(case: Case, name: str, what: str) -> Callable[[], object]:
    """Prepare a call for `peak_memory`. A tiny case loads the libraries and starts the threads beforehand."""
    make = forward_of if what == FORWARD else forward_backward_of
    make(name, make_inputs(QUICK_CASES[0]))()
    return make(name, make_inputs(case))


# ---- Targets -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """A target of the project. `measured` is None if the rival to compare with was not available."""

    name: str
    wanted: float
    measured: float | None
    at_least: bool
    unit: str = "x"

    @property
    def met(self) -> bool | None:
        if self.measured is None:
            return None
        return self.measured >= self.wanted if self.at_least else self.measured <= self.wanted


def targets_of(
    timings: dict[tuple[str, int], Timings], memory: Sequence[dict[str, Any]], threads: int
) -> list[Target]:
    """Return the project's targets with the measured numbers. Rivals are compared with the unfused operator,
    which does the same work."""
    encoder, decoder = timings["encoder", threads], timings["decoder", threads]

    def faster(name: str, wanted: float, rival: float | None, ours: Timing) -> Target:
        return Target(name, wanted, None if rival is None else rival / ours.median, at_least=True)

    targets = []
    for name, by_call, what, over_grid_sample, over_msda in (
        ("encoder forward", encoder, FORWARD, 40, 9),
        ("encoder forward + backward", encoder, FORWARD_BACKWARD, 28, 7),
        ("decoder forward + backward", decoder, FORWARD_BACKWARD, 10, 4),
    ):
        ours = by_call[UNFUSED, what]
        targets += [
            faster(f"{name}, over grid_sample", over_grid_sample, grid_sample_seconds(by_call, what), ours),
            faster(f"{name}, over {TORCH_MSDA}", over_msda, _median(by_call, TORCH_MSDA, what), ours),
        ]
    fused = encoder[FUSED, FORWARD]
    targets += [
        faster("encoder forward, fused over eager", 2, encoder[EAGER, FORWARD].median, fused),
        faster("encoder forward, bf16 over fp32", 1.3, fused.median, encoder[BF16, FORWARD]),
    ]
    for what, wanted in ((FORWARD, 1.8), (BACKWARD, 2.2)):
        distance = encoder[FUSED, what].median / encoder[LIMIT, what].median
        targets.append(Target(f"encoder {what}, distance to the limit", wanted, distance, at_least=False))
    saved = next(row["saved_bytes"] for row in memory if row["operator"] == FUSED)
    targets.append(Target("encoder, saved for backward", 50, saved / 1e6, at_least=False, unit=" MB"))
    return targets


def grid_sample_seconds(timings: Timings, what: str) -> float:
    """Return the seconds of the faster `grid_sample` form: ours, or transformers' if it takes part."""
    theirs = _median(timings, TRANSFORMERS, what)
    ours = timings[GRID_SAMPLE, what].median
    return ours if theirs is None else min(ours, theirs)


def _median(timings: Timings, name: str, what: str) -> float | None:
    return timings[name, what].median if (name, what) in timings else None


# ---- Tables --------------------------------------------------------------------------------------


def _print_times(case: Case, threads: int, names: Sequence[str], timings: Timings, console: Console) -> None:
    plural = "" if threads == 1 else "s"
    rows = table(
        f"\n{case.name}, {threads} thread{plural}",
        "\n\noperator",
        "\nforward,\nms",
        "\nforward +\nbackward, ms",
        "times\nfaster than\ngrid_sample",
        "faster than\ntorch-ms-\ndeform-attn",
    )
    rivals: tuple[Callable[[str], float | None], ...] = (
        lambda what: grid_sample_seconds(timings, what),
        lambda what: _median(timings, TORCH_MSDA, what),
    )
    for name in names:
        forward, both = timings[name, FORWARD], timings[name, FORWARD_BACKWARD]
        over = [
            f"{_times_faster(rival(FORWARD), forward)} / {_times_faster(rival(FORWARD_BACKWARD), both)}"
            for rival in rivals
        ]
        rows.add_row(name, _milliseconds(forward), _milliseconds(both), *over)
    console.print(rows)

    rows = table("", "", "forward, ms", "distance", "backward, ms", "distance")
    for ours, limits, _ in LIMITED:
        rows.add_row(
            ours, _milliseconds(timings[ours, FORWARD]), "", _milliseconds(timings[ours, BACKWARD]), ""
        )
        for limit in limits:
            of = [_distance(timings, ours, limit, what) for what in (FORWARD, BACKWARD)]
            rows.add_row(limit, *of[0], *of[1])
    console.print(rows)


def _distance(timings: Timings, ours: str, limit: str, what: str) -> tuple[str, str]:
    floor = timings[limit, what]
    return _milliseconds(floor), f"{timings[ours, what].median / floor.median:.2f}x"


def _milliseconds(timing: Timing) -> str:
    median, spread = 1e3 * timing.median, 1e3 * timing.spread
    digits = 0 if median >= 100 else 1 if median >= 10 else 2
    return f"{median:.{digits}f} ±{spread:.{digits}f}"


def _times_faster(rival: float | None, ours: Timing) -> str:
    if rival is None:
        return "-"
    return f"{rival / ours.median:.{1 if rival / ours.median < 100 else 0}f}"


def _print_memory(case: Case, rows: Sequence[dict[str, Any]], console: Console) -> None:
    memory = table(
        f"\nmemory, {case.name}, MB", "operator", "saved for backward", "peak, forward", "peak, with backward"
    )
    for row in rows:
        peaks = (row["forward_peak_bytes"], row["forward_backward_peak_bytes"])
        memory.add_row(
            row["operator"],
            f"{row['saved_bytes'] / 1e6:.1f}",
            *("-" if peak is None else f"{peak / 1e6:.0f}" for peak in peaks),
        )
    console.print(memory)


def _print_targets(targets: Sequence[Target], threads: int, console: Console) -> None:
    rows = table(f"\ntargets, {threads} threads", "", "target", "measured", "")
    for target in targets:
        rows.add_row(
            target.name,
            f"{'≥' if target.at_least else '≤'} {target.wanted:g}{target.unit}",
            "-" if target.measured is None else f"{target.measured:.2f}{target.unit}",
            {True: "met", False: "MISSED", None: "not measured"}[target.met],
        )
    console.print(rows)

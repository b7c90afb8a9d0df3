"""The names, the targets and the tables of `benchmark infer`."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console

from .measure import Timing
from .tables import Goal, print_goals, table

TRANSFORMERS, ONNXRUNTIME, OPENVINO = "transformers", "onnxruntime", "openvino"
PEERS = {TRANSFORMERS: "transformers", ONNXRUNTIME: "onnxruntime", OPENVINO: "openvino"}
OURS, PLAIN, BF16 = "ours", "ours, plain", "ours, bf16"
TRANSFORMERS_BF16, OPENVINO_BF16 = "transformers, bf16", "openvino, bf16"
IMPORTS, HELP, COLD_PREDICT = "import torch", "--help", "predict, cold process to file written"
TOLERANCE = 1e-4  # the largest accepted difference of a logit or box between the runner and the plain model


def goals_of(
    timings: Mapping[str, Timing],
    memory: Mapping[str, int],
    commands: Mapping[str, float],
    beside: int,
) -> list[Goal]:
    """Return the project's targets with the measured numbers.

    If other processes kept the processor busy (`beside` of them), the targets against OpenVINO are lower, and
    commands cannot be compared with forward passes, because only those were timed beside them.
    """

    def times_faster(peer: str, ours: str) -> float | None:
        if peer not in timings or ours not in timings:
            return None
        return timings[peer].median / timings[ours].median

    openvino, openvino_bf16 = ((1.0, 1.3), (1.0, 1.3)) if beside else ((1.8, 2.0), (3.3, 4.0))
    share = memory[OURS] / memory[TRANSFORMERS] if TRANSFORMERS in memory else None
    beyond = None if beside else commands[COLD_PREDICT] - commands[IMPORTS] - timings[OURS].median
    return [
        Goal("fp32 against transformers", 3.5, 4.0, times_faster(TRANSFORMERS, OURS), at_least=True),
        Goal("fp32 against onnxruntime", 1.2, 1.35, times_faster(ONNXRUNTIME, OURS), at_least=True),
        Goal("fp32 against openvino", *openvino, times_faster(OPENVINO, OURS), at_least=True),
        Goal("bf16 against transformers fp32", 6.5, 8.0, times_faster(TRANSFORMERS, BF16), at_least=True),
        Goal("bf16 against openvino bf16", *openvino_bf16, times_faster(OPENVINO_BF16, BF16), at_least=True),
        Goal("peak memory, share of transformers'", 0.5, 0.35, share, at_least=False),
        Goal("--help, seconds", 0.5, 0.5, commands[HELP], at_least=False),
        Goal("predict, beyond imports and forward", 1.5, 1.5, beyond, at_least=False),
    ]


def print_tables(
    recipe: str,
    size: tuple[int, int],
    threads: int,
    timings: Mapping[str, Timing],
    memory: Mapping[str, int],
    distances: Mapping[str, float],
    commands: Mapping[str, float],
    goals: list[Goal],
    console: Console,
) -> None:
    height, width = size
    title = f"\n{recipe}, {height}x{width}, {threads} threads"
    rows = table(title, "", "seconds", "x ours", "peak, GB", "distance")
    for name, timing in timings.items():
        rows.add_row(
            name,
            f"{timing.median:.3f} ±{timing.spread:.3f}",
            f"{timing.median / timings[OURS].median:.2f}",
            f"{memory[name] / 1e9:.2f}",
            f"{distances[name]:.0e}",
        )
    console.print(rows)
    console.print(
        f"distance: largest difference of a logit or box to our plain model's (ours ≤ {TOLERANCE:g})"
    )
    for name, seconds in commands.items():
        console.print(f"{name}: {seconds:.2f} s", highlight=False)
    print_goals(console, "targets", goals)

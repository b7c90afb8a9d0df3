"""Benchmarks: what this package and its peers cost on this machine, measured in one alternating run.

`measure` is the stop-watch; each benchmark is a module of the name that the command line knows
(`python -m experiments.benchmark op`), with two functions: `add_arguments(parser)` and `run(arguments)`.
"""

from __future__ import annotations

# Name of the module → what it measures. (`import experiments.benchmark` loads none of them.)
BENCHMARKS = {
    "op": "the operator alone: forward, backward, memory, distance to a measured limit",
    "infer": "one picture through the model: time, peak memory, distance of the outputs",
    "train": "one update of training: time, peak memory, losses",
}

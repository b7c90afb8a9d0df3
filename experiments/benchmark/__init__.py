"""Benchmarks of this package and its peers on this machine, measured in one alternating run.

`measure` is the stop-watch. Each benchmark is a module, named as on the command line
(`python -m experiments.benchmark op`), with two functions: `add_arguments(parser)` and `run(arguments)`.
"""

from __future__ import annotations

# Module name → summary for --help. (`import experiments.benchmark` loads none of the modules.)
BENCHMARKS = {
    "op": "the operator alone: forward, backward, memory, distance to a measured limit",
    "infer": "one picture through the model: time, peak memory, distance of the outputs",
    "train": "one update of training: time, peak memory, losses",
}

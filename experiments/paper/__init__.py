"""The paper as commands: each experiment is a module, named as on the command line
(`python -m experiments.paper table1`), with two functions: `add_arguments(parser)` and `run(arguments)`.
"""

from __future__ import annotations

# Module name → summary for --help. (`import experiments.paper` loads none of the modules.)
EXPERIMENTS = {
    "table1": "DETR against Deformable DETR: AP, size, cost, speed",
    "table2": "ablations of multi-scale inputs, attention, K, FPN",
    "table3": "larger backbones, test-time augmentation",
    "figure3": "AP against epoch, from any runs",
    "figure5": "what each number of a prediction depends on",
    "figure6": "where encoder and decoder look",
    "queue": "the small-scale runs, from a file",
    "summary": "what those runs show about the claims",
    "compare": "what variants of a recipe add, by a paired test",
    "complexity": "cost against resolution, attention at the start",
    "attention": "how attention finds its keys over the epochs",
}

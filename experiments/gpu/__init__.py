"""All checks and benchmarks that require a GPU, in one command: `scripts/gpu_check.sh OUT`.

Each step is a module with one function, `run(job)`, and runs in a separate process, so that a crash does not
affect the other steps. Each finding is written at once, so a run that is cut off keeps its findings. On a CPU
the same steps run in a small form (`--device cpu --quick`), which tests only the check itself.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """A step of the check. If `proves` is True, its failures make the whole check fail; other steps only
    measure. `only_a_gpu` states what its form on a CPU cannot show."""

    title: str
    module: str
    proves: bool
    only_a_gpu: str


STEPS = {
    "a": Step(
        "the operator against float64",
        "operator",
        True,
        "whether the Triton kernels compile, race, read outside of their tensors, and how exact they are",
    ),
    "b": Step(
        "the whole model, GPU against CPU",
        "model",
        True,
        "whether every part of the model runs on CUDA, and how far each precision is from the CPU",
    ),
    "c": Step(
        "training in every precision",
        "training",
        True,
        "whether training learns in bf16 and fp16, scales gradients, resumes, and speaks NCCL",
    ),
    "d": Step(
        "lite for a minute: AP",
        "lite",
        True,
        "what a minute of training on a GPU buys",
    ),
    "e": Step(
        "benchmark of the operator",
        "bench_op",
        False,
        "time, distance to the floor, and the best cut of the kernels",
    ),
    "f": Step(
        "benchmark of inference",
        "bench_infer",
        False,
        "frames per second: eager, compiled, as a CUDA graph; where the host waits",
    ),
    "g": Step(
        "benchmark of training",
        "bench_train",
        False,
        "images per second and memory by batch; where the host waits",
    ),
}

"""A forecast of the time and memory of training, measured on a few updates with the data.

The updates are those of training (rehearsal.py), with the recipe's augmentation and loader. They run in a
separate process, because the peak memory of a process never falls. The last update determines how much
memory is needed: it uses an artificial batch of the recipe's size, whose pictures have the largest size that
the data can produce and the objects of the fullest images. The trained weights are discarded.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config import RunConfig, from_dict, override, to_dict
from ..config import recipe as recipe_of
from ..errors import NonFiniteError, UserError
from ..inspection import Forecast
from ..system.machine import load_average
from ..system.memory import bytes_of_children, peak_bytes
from ..system.openmp import thread_settings

SECONDS = 15.0  # no further update is measured after this time
# The updates to warm up, the minimum number of measured updates after them, and the maximum of both together.
WARM_UP, MINIMUM, MAXIMUM = 2, 3, 40
EVALUATED = 8  # images to evaluate


def forecast(
    data: str | Path,
    recipe: str | RunConfig = "deformable_detr_lite",
    *,
    format: str | None = None,
    device: str = "auto",
    seconds: float = SECONDS,
) -> Forecast:
    """Measure some updates of training on `data` and forecast the time and memory of a run.

    Args:
        data: the folder of the data set.
        recipe: the name of a recipe, or a whole configuration.
        format: coco, voc, yolo or auto; None means the format that the configuration names.
        device: auto, cpu or cuda.
        seconds: the time after which no further update starts. At least three updates are measured, after two
            to warm up, if an epoch has that many, and at most 38.

    Returns:
        The measured times and memory, and the numbers of updates and epochs of a run.

    Raises:
        UserError: if training would refuse the data, the settings or the device, there is no split to train
            on, a loss or a clipped gradient is not finite, or the system kills the process that measures,
            probably for lack of memory.
        RuntimeError: if that process fails for another reason, such as an allocation that fails.
    """
    config = recipe if isinstance(recipe, RunConfig) else recipe_of(recipe)
    if format is not None:
        config = override(config, {"data.format": format})
    order = {"data": str(data), "config": to_dict(config), "device": device, "seconds": seconds}
    child = subprocess.run(
        [sys.executable, "-m", __name__],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        env=os.environ | thread_settings(os.environ, spin_briefly=True),  # as in `deformable-detr train`
    )
    if child.returncode < 0:
        raise UserError(
            f"training {config.recipe} on {data} was killed by the system (signal {-child.returncode}), "
            "probably for lack of memory: set --train.batching single, reduce --data.train_sizes, or set "
            "--train.activation_checkpointing true."
        )
    lines = child.stdout.splitlines()
    if child.returncode != 0 or not lines:
        raise RuntimeError(f"the forecast's process failed:\n{child.stderr[-2000:]}")
    answer = json.loads(lines[-1])
    if "error" in answer:
        raise UserError(f"no forecast: {answer['error']}")
    return Forecast(**{**answer, "largest_batch": tuple(answer["largest_batch"])})


# --- in the child process ---------------------------------------------------------------------------------


def _main() -> None:
    from ..system.allocator import keep_large_buffers

    keep_large_buffers()  # as in `deformable-detr train`
    order = json.load(sys.stdin)
    config = from_dict(RunConfig, order["config"])
    try:
        answer = _measure(order["data"], config, order["device"], order["seconds"])
    except (UserError, NonFiniteError) as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))


def _measure(data: str, config: RunConfig, device: str, seconds: float) -> dict[str, Any]:
    import torch

    from .parts import build_parts
    from .rehearsal import evaluation_seconds, take_largest_update, timed_updates

    # Random weights take as long as trained ones and need no download. Features are not cached, as in the
    # first epoch with a cache.
    settings = replace(config.train, backbone_weights=None, cache_features=False)
    config = replace(config, train=settings)
    with tempfile.TemporaryDirectory() as folder:
        run = build_parts(data, config, Path(folder) / "run", device=device)
        times: list[float] = []
        busy: list[float] = []
        workers = 0
        started, cpu = time.perf_counter(), time.process_time()
        for elapsed in timed_updates(run):
            times.append(elapsed)
            worked, cpu = time.process_time() - cpu, time.process_time()
            busy.append(worked)
            workers = max(workers, bytes_of_children())
            is_over = time.perf_counter() - started > seconds
            if len(times) >= MAXIMUM or (len(times) >= WARM_UP + MINIMUM and is_over):
                break
        largest = take_largest_update(run)
        evaluation = evaluation_seconds(run, EVALUATED)
    # A small data set may have no updates beyond the warm-up.
    counted = times[WARM_UP:] or times[-1:]
    counted_busy = busy[WARM_UP:] or busy[-1:]
    on_gpu = run.processes.device.type == "cuda"
    return {
        "recipe": config.recipe,
        "device": torch.cuda.get_device_name() if on_gpu else _cpu(torch.get_num_threads()),
        "batch_size": run.total_batch,
        "updates_measured": len(counted),
        "update_seconds": statistics.fmean(counted),
        "update_spread": statistics.stdev(counted) if len(counted) > 1 else 0.0,
        "update_cpu_seconds": statistics.fmean(counted_busy),
        "updates_per_epoch": run.updates_per_epoch,
        "evaluation_seconds": evaluation / run.config.train.evaluate_every,
        "epochs": run.config.train.epochs,
        "peak_bytes": peak_bytes() + workers,
        "gpu_bytes": torch.cuda.max_memory_allocated() if on_gpu else 0,
        "largest_batch": list(largest),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count() or 1,
        "load": load_average() or 0.0,
    }


def _cpu(threads: int) -> str:
    return f"the CPU ({threads} {'thread' if threads == 1 else 'threads'})"


if __name__ == "__main__":
    _main()

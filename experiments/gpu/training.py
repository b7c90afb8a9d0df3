"""Step (c): short trainings on drawn pictures, in every precision and in every form."""

from __future__ import annotations

import math
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

import deformable_detr as dd
from deformable_detr.errors import TrainingInterruptedError
from deformable_detr.run_folder.reading import read_metrics

from .report import Facts, Job, limit, require

RECIPE = "deformable_detr_lite"
METRICS = "metrics.jsonl"
UPDATES, QUICK_UPDATES = 12, 4
SMALL_PICTURES: dict[str, Any] = {
    "data.image_size": 120,
    "data.max_size": 200,
    "data.train_sizes": (104, 112, 120, 128),
}
TINY_MODEL: dict[str, Any] = {
    "model.backbone.name": "test_efficientnet",
    "model.hidden_dim": 32,
    "model.num_heads": 4,
    "model.num_queries": 20,
    "model.encoder_layers": 1,
    "model.decoder_layers": 2,
    "model.ffn_dim": 64,
}
# Every batch has the same shape, because new shapes cost time; step d trains with the usual augmentation.
ONE_SHAPE: dict[str, Any] = {"data.augmentation": "none"}
# Settings without which the result would depend on how a batch is divided.
PLAIN: dict[str, Any] = {"train.warmup_steps": 0, "train.max_steps": 5}
# Largest relative differences from the losses on the CPU, in the first update and in all of them. PyTorch's
# convolutions use TF32 on a GPU by default, also in the float32 of `train`.
BOUNDS = {"fp16": (3e-2, 0.15), "bf16": (3e-2, 0.08), "fp32": (5e-3, 0.05)}
LOSS_TOLERANCE = 1e-2  # between two runs that should agree; the order of atomic additions varies


def run(job: Job) -> None:
    # cuBLAS requires it in PyTorch's deterministic mode, before its first product.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    find = job.report.find
    updates = QUICK_UPDATES if job.quick else UPDATES
    for precision in BOUNDS if job.on_gpu else ("fp32", "bf16"):
        find(precision, partial(_follows_cpu, job, precision, updates))
    find("stop and resume", partial(_resumes, job, updates))
    if job.on_gpu:
        find("one process under torchrun, NCCL", partial(_torchrun, job), needs_seconds=15)
    find("accumulation and activation checkpointing", partial(_same_gradients, job))
    if job.on_gpu:
        find("deterministic", partial(_deterministic, job), needs_seconds=10)
    find("stopped by a signal", partial(_stops, job), needs_seconds=10)


def settings(job: Job, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run with `changes`, by their paths in the configuration."""
    base: dict[str, Any] = {
        "train.backbone_weights": None,
        "train.batch_size": 4 if job.quick else 8,
        "train.epochs": 1000,
        "train.warmup_steps": 2 if job.quick else 5,
        "train.precision": "fp32",
        "train.schedule": "step",
        "train.ema_decay": 0.0,
        "train.log_every": 1,
        "train.report": False,
        "train.evaluate_every": 1000,
        "train.seed": job.seed % 1000,
        "data.num_workers": 0 if job.quick else 2,
    }
    return base | SMALL_PICTURES | ONE_SHAPE | (TINY_MODEL if job.quick else {}) | dict(changes)


def trained(
    job: Job, folder: str, changes: Mapping[str, Any], *, resume: bool = False
) -> list[dict[str, Any]]:
    """Train into `folder`, and return the log's row of each update."""
    if job.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    output = job.work / "runs" / folder
    overrides: dict[str, Any] = settings(job, changes)
    dd.train(job.data, RECIPE, output, resume=resume, device=job.device.type, **overrides)
    return losses_of(output)


def losses_of(run_folder: Path) -> list[dict[str, Any]]:
    return [row for row in read_metrics(run_folder / METRICS) if row["kind"] == "train"]


def _follows_cpu(job: Job, precision: str, updates: int, finding: Facts) -> None:
    """Compare the losses of a run with those of the same run in float32 on the CPU.

    They drift apart by rounding, so the bound of the first update is narrower than that of the others. In
    float16, the first updates are skipped until the gradients fit after scaling.
    """
    right = _on_cpu(job, updates)
    rows = trained(job, precision, {"train.precision": precision, "train.max_steps": updates})
    losses = [row["loss"] for row in rows]
    finding["losses"], finding["losses_on_cpu"] = losses, [row["loss"] for row in right]
    finding["images_per_second"] = statistics.median(row["images_per_second"] for row in rows[1:])
    if job.on_gpu:
        finding["peak_bytes"] = torch.cuda.max_memory_allocated()
    require(finding, all(map(math.isfinite, losses)), "a loss is not finite")
    first, later = BOUNDS[precision]
    limit(finding, _largest_difference(rows[:1], right[:1]), first, "difference_of_first_update")
    limit(finding, _largest_difference(rows, right), later, "difference_of_all_updates")
    if precision == "fp16":
        state = torch.load(job.work / "runs" / precision / "training_state.pt", weights_only=True)
        finding["scaler"] = {key: float(value) for key, value in (state["scaler"] or {}).items()}
        require(finding, bool(finding["scaler"]), "gradients were not scaled")


def _on_cpu(job: Job, updates: int) -> list[dict[str, Any]]:
    """Return the log's rows of the run in float32 on the CPU, which is made when it is first needed."""
    output = job.work / "runs" / "cpu"
    if not output.exists():
        dd.train(job.data, RECIPE, output, device="cpu", **settings(job, {"train.max_steps": updates}))
    return losses_of(output)


def _largest_difference(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> float:
    return max(
        float(abs(mine["loss"] - other["loss"]) / abs(other["loss"]))
        for mine, other in zip(ours, theirs, strict=True)
    )


def _resumes(job: Job, updates: int, finding: Facts) -> None:
    """Compare a whole run, the same run again, and a run in two halves. On a CPU all three must be identical
    to the bit. On a GPU the second shows how far apart two equal runs are, and the third must not be much
    farther."""
    half = updates // 2
    first = trained(job, "whole", {"train.max_steps": updates})
    again = trained(job, "again", {"train.max_steps": updates})
    trained(job, "halves", {"train.max_steps": half})
    halves = trained(job, "halves", {"train.max_steps": updates}, resume=True)
    spread = _largest_difference(again, first)
    finding["spread_of_equal_runs"] = spread
    finding["spread_after_one_update"] = _largest_difference(again[:2], first[:2])
    bound = 5 * max(spread, 0.02) if job.on_gpu else 0.0
    limit(finding, _largest_difference(halves, first), bound, "difference_after_resume")


def _same_gradients(job: Job, finding: Facts) -> None:
    """Compare the losses of training on whole batches, on two halves of each batch, and with layers that are
    computed again."""
    batch = int(settings(job, {})["train.batch_size"])
    forms: dict[str, dict[str, Any]] = {
        "plain": {},
        "two halves": {"train.batch_size": batch // 2, "train.accumulate": 2},
        "computed again": {"train.activation_checkpointing": True},
    }
    rows = {}
    for name, changes in forms.items():
        rows[name] = trained(job, name, PLAIN | changes)
        if job.on_gpu:
            finding[f"peak_bytes, {name}"] = torch.cuda.max_memory_allocated()
    for name, bound in (("two halves", 1e-3), ("computed again", 1e-4)):
        first = _largest_difference(rows[name][:1], rows["plain"][:1])
        limit(finding, first, bound, f"{name}: difference_of_first_update")
        difference = _largest_difference(rows[name], rows["plain"])
        limit(finding, difference, 0.1, f"{name}: difference_of_all_updates")


def _stops(job: Job, finding: Facts) -> None:
    """Stop a run by SIGINT, as by Ctrl-C, and check that it can be resumed."""
    log = job.work / "runs" / "stopped" / METRICS
    threading.Thread(target=_interrupt_after_updates, args=(log,), daemon=True).start()
    try:
        trained(job, "stopped", {"train.max_steps": 10000})
        require(finding, False, "the signal did not stop it")
    except TrainingInterruptedError as error:
        finding["sentence"] = str(error)
    done = len(losses_of(job.work / "runs" / "stopped"))
    rows = trained(job, "stopped", {"train.max_steps": done + 2}, resume=True)
    finding["updates_before"], finding["updates_after"] = done, len(rows)
    require(finding, len(rows) == done + 2, "it did not continue where it was stopped")


def _interrupt_after_updates(log: Path, updates: int = 3, patience: float = 60.0) -> None:
    started = time.perf_counter()
    while time.perf_counter() - started < patience:
        if log.is_file() and len(log.read_text().splitlines()) >= updates:
            os.kill(os.getpid(), signal.SIGINT)
            return
        time.sleep(0.05)


def _torchrun(job: Job, finding: Facts) -> None:
    output = job.work / "runs" / "torchrun"
    options = [
        f"--{name}={_text(value)}"
        for name, value in settings(job, {"train.max_steps": 5, "train.precision": "auto"}).items()
    ]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]
    command += ["-m", "deformable_detr", "train", str(job.data), "--recipe", RECIPE, "--output", str(output)]
    done = subprocess.run(
        [*command, *options], capture_output=True, text=True, timeout=max(20.0, job.report.time_left() - 5)
    )
    finding["output"] = (done.stdout + done.stderr).strip().splitlines()[-8:]
    require(finding, done.returncode == 0, f"it ended with {done.returncode}")
    require(finding, len(losses_of(output)) == 5, "not all updates were made")
    require(finding, "bfloat16" in done.stdout, "train.precision auto was not bfloat16")


def _text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _deterministic(job: Job, finding: Facts) -> None:
    """Note what PyTorch's deterministic modes do: the strict one may refuse to train, the lenient one warns.

    Two lenient runs must agree in their first update.
    """
    try:
        torch.use_deterministic_algorithms(True)
        try:
            trained(job, "strict", PLAIN)
            finding["strict"] = "trains"
        except Exception as error:  # whichever operator is the first to refuse
            finding["strict"] = f"{type(error).__name__}: {error}"[:300]
        torch.use_deterministic_algorithms(True, warn_only=True)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            first = trained(job, "lenient", PLAIN)
            again = trained(job, "lenient again", PLAIN)
    finally:
        torch.use_deterministic_algorithms(False)
    finding["warnings"] = sorted({str(each.message)[:160] for each in caught})[:8]
    finding["difference_of_lenient_runs"] = _largest_difference(again, first)
    limit(finding, _largest_difference(again[:1], first[:1]), LOSS_TOLERANCE, "difference_of_first_update")

"""Step (g): images per second and memory of training, ours and transformers', and where the host waits."""

from __future__ import annotations

import gc
import statistics
from collections import Counter
from functools import partial

import torch

import deformable_detr as dd

from .bench_infer import QUICK_RECIPE, QUICK_SIZE, RECIPE, SIZE
from .clock import host_ms, median_ms, once_ms
from .parts import Update, images, our_update, transformers_update
from .profiling import host_waits, profiled
from .report import Facts, Job
from .training import settings

DTYPES = {"fp32": None, "bf16": torch.bfloat16}
# (whose, precision, batch, layers computed again), the most important first: time may run out for the last.
TRIALS = (
    ("ours", "bf16", 2, False),
    ("transformers", "bf16", 2, False),
    ("ours", "fp32", 2, False),
    ("transformers", "fp32", 2, False),
    ("ours", "bf16", 8, False),
    ("transformers", "bf16", 8, False),
    ("ours", "fp32", 8, False),
    ("transformers", "fp32", 8, False),
)
QUICK_TRIALS = (("ours", "fp32", 2, False),)
# Recipe, first size and batch of the updates with pictures of sizes that have not been seen before.
NEW_SIZES = (("deformable_detr_lite", (288, 384), 4), ("deformable_detr_r50", (640, 800), 2))
QUICK_NEW_SIZES = (("deformable_detr_lite", (64, 96), 2),)
PAPER_EPOCHS, COCO_IMAGES = 50, 118_287


def run(job: Job) -> None:
    found: dict[str, Facts] = {}
    for number, trial in enumerate(QUICK_TRIALS if job.quick else TRIALS):
        name = _name(*trial)
        found[name] = job.report.find(name, partial(_time, job, *trial), needs_seconds=6)
        if number == 5 and job.on_gpu:
            job.report.find("profile", partial(_profile, job), needs_seconds=6)
            job.report.find("where the host waits", partial(_waits, job), needs_seconds=6)
    job.report.find("targets", partial(_targets, found))
    for recipe, size, batch in QUICK_NEW_SIZES if job.quick else NEW_SIZES:
        job.report.find(
            f"new sizes: {recipe}", partial(_new_sizes, job, recipe, size, batch), needs_seconds=6
        )
    if job.on_gpu:
        job.report.find("where the host waits in `train`", partial(_waits_in_training, job), needs_seconds=12)


def _name(whose: str, precision: str, batch: int, checkpointed: bool) -> str:
    return f"{whose}: {precision}, batch {batch}" + (", layers computed again" if checkpointed else "")


def _update(job: Job, whose: str, precision: str, batch: int, checkpointed: bool) -> Update:
    recipe, size = (QUICK_RECIPE, QUICK_SIZE) if job.quick else (RECIPE, SIZE)
    if whose == "transformers":
        return transformers_update(recipe, size, batch, job.device, DTYPES[precision])
    return our_update(recipe, size, batch, job.device, DTYPES[precision], checkpointed=checkpointed)


def _time(job: Job, whose: str, precision: str, batch: int, checkpointed: bool, finding: Facts) -> None:
    gc.collect()
    if job.on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    update = _update(job, whose, precision, batch, checkpointed)
    finding["first_loss"] = float(update())
    milliseconds = median_ms(update, job.device, quick=job.quick, budget_ms=1000)
    finding["ms"], finding["images_per_second"] = milliseconds, batch * 1e3 / milliseconds
    if job.on_gpu:
        finding["host_ms"] = host_ms(update, repeats=3)
        finding["peak_bytes"] = torch.cuda.max_memory_allocated()


def _profile(job: Job, finding: Facts) -> None:
    update = _update(job, "ours", "bf16", 2, False)
    update()
    finding.update(profiled("an update, bf16, batch 2", update, job.device, job.output / "profile.txt"))


def _waits(job: Job, finding: Facts) -> None:
    update = _update(job, "ours", "bf16", 2, False)
    update()
    with host_waits() as found:
        update()
    finding["waits"], finding["places"] = sum(found.values()), dict(found.most_common())


def _waits_in_training(job: Job, finding: Facts) -> None:
    """Count the host's waits per update of `train`, including its loader and log.

    The count is that of a run of seven updates minus that of a run of three, divided by four.
    """
    counts: list[Counter[str]] = []
    for updates in (3, 7):
        with host_waits() as found:
            dd.train(
                job.data,
                "deformable_detr_lite",
                job.work / "runs" / f"waits {updates}",
                device="cuda",
                **settings(job, {"train.max_steps": updates, "train.precision": "bf16"}),
            )
        counts.append(found)
    per_update = {place: (count - counts[0][place]) / 4 for place, count in counts[1].items()}
    finding["waits_per_update"] = sum(per_update.values())
    finding["places"] = {place: count for place, count in per_update.items() if count > 0}


def _new_sizes(job: Job, recipe: str, size: tuple[int, int], batch: int, finding: Facts) -> None:
    """Time updates with pictures of four sizes: the first one of each size, in which libraries prepare
    themselves for it, and the median of four more. The very first one compiles the kernels as well."""
    update = our_update(recipe, size, batch, job.device, DTYPES["bf16" if job.on_gpu else "fp32"])
    times = []
    for number in range(1 if job.quick else 4):
        pixels = images((size[0] + 4 * number, size[1] + 8 * number), batch, job.device, number)
        times.append([once_ms(partial(update, pixels), job.device) for _ in range(2 if job.quick else 5)])
    finding["first_ms"] = [first for first, *_ in times]
    finding["later_ms"] = [statistics.median(later) for _, *later in times]


def _targets(found: dict[str, Facts], finding: Facts) -> None:
    for precision in DTYPES:
        for batch in (2, 8):
            ours = found.get(_name("ours", precision, batch, False), {})
            theirs = found.get(_name("transformers", precision, batch, False), {})
            if "ms" in ours and "ms" in theirs:
                finding[f"{precision}, batch {batch}: times transformers"] = theirs["ms"] / ours["ms"]
                if "peak_bytes" in ours:
                    share = ours["peak_bytes"] / theirs["peak_bytes"]
                    finding[f"{precision}, batch {batch}: share of its memory"] = share
    rates = {name: each["images_per_second"] for name, each in found.items() if "images_per_second" in each}
    ours_best = max(
        (name for name in rates if name.startswith("ours")), key=lambda name: rates[name], default=""
    )
    if ours_best:
        hours = PAPER_EPOCHS * COCO_IMAGES / rates[ours_best] / 3600
        finding["best"], finding["images_per_second"] = ours_best, rates[ours_best]
        finding["hours for 50 epochs on one"] = hours
        finding["hours for 50 epochs on eight, if they scale"] = hours / 8

"""Step (d): the small model, trained for a minute on drawn pictures."""

from __future__ import annotations

import statistics
import time
from functools import partial
from typing import Any

import deformable_detr as dd
from deformable_detr.run_folder.reading import read_metrics

from .jobs import TRAIN_PICTURES, large_data
from .report import Facts, Job, require
from .training import METRICS, RECIPE, SMALL_PICTURES, TINY_MODEL, losses_of

SECONDS, QUICK_SECONDS = 60.0, 6.0
SECONDS_AROUND = 10.0  # loading and the evaluation
LEAST_SECONDS = 15.0  # AP is compared with its bound only if training took longer
BATCH_SIZE = 16
LEAST_AP = 0.2  # the AP of the demo, after minutes on two cores of a CPU, is higher


def run(job: Job) -> None:
    job.report.find("lite", partial(_train, job), needs_seconds=8.0 if job.quick else 25.0)


def _train(job: Job, finding: Facts) -> None:
    """Train and evaluate the model.

    The speed is measured first, because the schedule of the learning rate depends on the number of updates.
    """
    data = job.data if job.quick else large_data(job.work)
    common: dict[str, Any] = {
        **SMALL_PICTURES,
        **(TINY_MODEL if job.quick else {}),
        "train.batch_size": 4 if job.quick else BATCH_SIZE,
        "train.precision": "bf16" if job.on_gpu else "fp32",
        "train.backbone_weights": None if job.quick else "imagenet",
        "train.evaluate_every": 1000,
        "train.warmup_steps": 5 if job.quick else 100,
        "train.report": False,
        "data.num_workers": 0 if job.quick else 14,
    }
    trial = job.work / "runs" / "pace"
    pace: dict[str, Any] = {
        "train.max_steps": 4 if job.quick else 40,
        "train.log_every": 2 if job.quick else 10,
    }
    dd.train(data, RECIPE, trial, device=job.device.type, **common, **pace)
    rate = statistics.median(row["images_per_second"] for row in losses_of(trial)[1:])
    num_images = 24 if job.quick else TRAIN_PICTURES
    # A tenth less than would fit, because a run that is cut off gives no result.
    fits = 0.9 * (job.report.time_left() - SECONDS_AROUND)
    wanted = QUICK_SECONDS if job.quick else min(SECONDS, fits)
    epochs = max(1, int(wanted * rate / num_images))
    started = time.perf_counter()
    output = job.work / "runs" / "lite"
    dd.train(
        data,
        RECIPE,
        output,
        device=job.device.type,
        **(common | {"train.epochs": epochs, "train.log_every": 50}),
    )
    seconds = time.perf_counter() - started
    rows = losses_of(output)
    metrics = [row for row in read_metrics(output / METRICS) if row["kind"] == "evaluation"][-1]
    finding.update(
        epochs=epochs,
        images=epochs * num_images,
        seconds_of_training=seconds,
        images_per_second=rows[-1]["images_per_second"],
        pace_of_the_trial=rate,
        losses=[row["loss"] for row in rows],
        AP=metrics["AP"],
        AP50=metrics["AP50"],
    )
    if not job.quick and seconds > LEAST_SECONDS:
        require(finding, metrics["AP"] >= LEAST_AP, f"AP is {metrics['AP']:.3f}, less than {LEAST_AP}")

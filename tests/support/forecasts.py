"""A forecast of training, for tests of what is made of forecasts."""

from __future__ import annotations

from deformable_detr.inspection import Forecast

# An epoch takes 100 s, and a run 10 minutes.
MEASURED = Forecast(
    recipe="deformable_detr_lite",
    device="the CPU",
    batch_size=4,
    updates_measured=3,
    update_seconds=2.0,
    update_spread=0.1,
    update_cpu_seconds=2.0,
    updates_per_epoch=30,
    evaluation_seconds=40.0,
    epochs=6,
    peak_bytes=1_500_000_000,
    gpu_bytes=0,
    largest_batch=(272, 363),
    threads=1,
    cores=2,
    load=0.0,
)

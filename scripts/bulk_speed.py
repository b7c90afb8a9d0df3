"""Measure `predict --format parquet`: its overhead over a plain loop, pictures per second, memory per worker.

    python scripts/bulk_speed.py [--pictures 192] [--repeats 5] [--ray] [--output bulk_speed.json]

The lite recipe with random weights looks at JPEG files of 480x640. The plain loop is `Detector.predict` with
four files at a time and the same single thread. Overhead is processor time, alternating with the plain loop,
which other programs disturb little; pictures per second are wall time and need quiet cores.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import deformable_detr as dd
from deformable_detr.bulk import Engine, predict_tables
from deformable_detr.system.machine import cpu_model, num_cores
from deformable_detr.system.memory import children, peak_bytes, private_bytes

THRESHOLD, BATCH = 0.3, 4


def write_photos(folder: Path, number: int) -> list[Path]:
    folder.mkdir()
    generator = np.random.default_rng(0)
    for index in range(number):
        pixels = generator.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        photo = Image.fromarray(pixels).resize((640, 480), Image.Resampling.BICUBIC)
        photo.save(folder / f"{index:05}.jpg", quality=90)
    return sorted(folder.iterdir())


def measured(work: Callable[[], Any]) -> tuple[float, float]:
    """Return the processor time and the wall time of a call in seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def alternating(photos: list[Path], folder: Path, model: Path, repeats: int) -> dict[str, float]:
    """Compare the plain loop with tables of one local worker."""
    detector = dd.load(model, "cpu")

    def plain() -> None:
        for start in range(0, len(photos), BATCH):
            detector.predict([str(path) for path in photos[start : start + BATCH]], THRESHOLD)

    marks: list[tuple[float, float]] = []

    def tables() -> None:
        """The work after the model is loaded and the pictures are listed, which a long run does once."""
        marks.clear()
        output = folder / "tables"
        predict_tables(
            model,
            folder / "photos",
            output,
            threshold=THRESHOLD,
            device="cpu",
            shard_size=len(photos) // 3,
            progress=lambda *_: marks.append((time.process_time(), time.perf_counter())),
        )
        shutil.rmtree(output)

    torch.set_num_threads(1)
    plain()
    loops, runs = [], []
    for _ in range(repeats):
        loops.append(measured(plain))
        tables()
        runs.append((marks[-1][0] - marks[0][0], marks[-1][1] - marks[0][1]))
    cpu, wall = ([run[kind] / loop[kind] for loop, run in zip(loops, runs, strict=True)] for kind in (0, 1))
    return {
        "plain_loop_images_per_second": len(photos) / statistics.median(loop[1] for loop in loops),
        "overhead_cpu_percent": 100 * (statistics.median(cpu) - 1),
        "overhead_cpu_percent_lowest": 100 * (min(cpu) - 1),
        "overhead_cpu_percent_highest": 100 * (max(cpu) - 1),
        "overhead_wall_percent": 100 * (statistics.median(wall) - 1),
    }


def speed(photos: list[Path], folder: Path, model: Path, engine: Engine) -> dict[str, float]:
    """Return the pictures per second between the first and the last part, and the memory of the workers."""
    marks: list[tuple[int, float]] = []
    memory: list[int] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.5):
            memory.append(max((private_bytes(child) for child in children()), default=0))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        predict_tables(
            model,
            folder / "photos",
            folder / "tables",
            threshold=THRESHOLD,
            device="cpu" if engine.name == "local" else "auto",
            shard_size=max(4, len(photos) // 24),
            engine=engine,
            progress=lambda done, *_: marks.append((done, time.perf_counter())),
        )
    finally:
        stop.set()
        watcher.join()
    shutil.rmtree(folder / "tables")
    first = marks[engine.workers]  # the models are loaded and every worker is at work
    result = {"images_per_second": (marks[-1][0] - first[0]) / (marks[-1][1] - first[1])}
    if engine.name == "local":
        own = engine.workers == 1
        result["memory_per_worker_bytes"] = peak_bytes() if own else max(memory)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pictures", type=int, default=192)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--ray", action="store_true", help="also measure a local Ray cluster")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        model = dd.create("deformable_detr_lite", 80, device="cpu").save(folder / "model")
        photos = write_photos(folder / "photos", options.pictures)
        engines = [Engine(workers=1), Engine(workers=2)]
        engines += [Engine("ray", 1), Engine("ray", 2)] if options.ray else []
        result: dict[str, Any] = {}

        def note(name: str, value: Any) -> None:
            result[name] = value
            print(name, json.dumps(value), flush=True)

        note("machine", f"{cpu_model()}, {num_cores()} cores, Python {platform.python_version()}")
        note("one worker", alternating(photos, folder, model, options.repeats))
        for engine in engines:
            note(f"{engine.name}, {engine.workers} workers", speed(photos, folder, model, engine))
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

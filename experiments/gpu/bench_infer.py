"""Step (f): pictures per second of our model (eager, compiled, as a CUDA graph) and of transformers'."""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from deformable_detr.inference import cuda
from deformable_detr.models import DetectionModel

from .clock import captured, host_ms, median_ms
from .parts import PRECISIONS, Plain, detector, images, precision, transformers_model
from .profiling import host_waits, profiled
from .report import Facts, Job

RECIPE, QUICK_RECIPE = "deformable_detr_r50", "deformable_detr_lite"
SIZE, QUICK_SIZE = (800, 1066), (96, 128)
# Frames per second in the paper, section 5.1 (Table 1), on a V100 in fp32, one picture at a time.
PAPER_V100_FPS = 19.0


@dataclass(frozen=True)
class Variant:
    """A way to run the model. `weights` is "float32", or "bfloat16" for a model that is converted instead of
    run under autocast."""

    precision: str
    batch: int
    form: str = "eager"  # or graph, compiled, compiled graph
    channels_last: bool = False
    weights: str = "float32"

    @property
    def name(self) -> str:
        parts = [self.precision, f"batch {self.batch}", self.form]
        parts += ["channels last"] * self.channels_last
        parts += [f"{self.weights} weights"] * (self.weights != "float32")
        return ", ".join(parts)


EAGER = (
    Variant("fp32", 1),
    Variant("tf32", 1),
    Variant("bf16", 1),
    Variant("fp32", 4),
    Variant("bf16", 4),
)
COMPILED = Variant("bf16", 1, "compiled", channels_last=True)
VARIANTS = (
    *EAGER,
    Variant("bf16", 1, "graph", channels_last=True),
    Variant("bf16", 1, "graph", channels_last=True, weights="bfloat16"),
    COMPILED,
    Variant("bf16", 1, "compiled graph", channels_last=True),
)
QUICK_VARIANTS = (Variant("fp32", 1, channels_last=True), Variant("fp32", 2, channels_last=True))
THEIRS = EAGER
# (precision, batch) of the runner that `predict` uses (inference/cuda).
RUNNER_FORMS = (
    ("bf16", 1),
    ("fp32", 1),
    ("fp16", 1),
    ("bf16", 4),
    ("fp32", 4),
)
SECONDS_TO_COMPILE = 18.0  # if the compiler's cache has the model


def run(job: Job) -> None:
    made = detector(QUICK_RECIPE if job.quick else RECIPE, seed=job.seed)
    theirs = None if job.quick else transformers_model(made)
    found: dict[str, Facts] = {}
    made.model.to(job.device)
    for variant in QUICK_VARIANTS if job.quick else VARIANTS:
        needed = SECONDS_TO_COMPILE if variant.form.startswith("compiled") else 3.0
        body = partial(_ours, job, made.model, variant)
        found[variant.name] = job.report.find(f"ours: {variant.name}", body, needs_seconds=needed)
        # These come before the compiler's turn, which may take all the time that is left.
        if variant in (EAGER[-1], QUICK_VARIANTS[-1]):
            _measure_theirs(job, theirs, found)
            for precision, batch in RUNNER_FORMS[: 1 if job.quick else None]:
                name = f"our runner: {precision}, batch {batch}"
                found[name] = job.report.find(name, partial(_runner, job, made.model, precision, batch))
            job.report.find("one picture to detections", partial(_whole, job))
            if job.on_gpu:
                job.report.find("profile", partial(_profile, job, made.model))
                job.report.find("where the host waits", partial(_waits, job, made.model))
    job.report.find("targets", partial(_targets, found))


def _measure_theirs(job: Job, model: nn.Module | None, found: dict[str, Facts]) -> None:
    if model is None:
        return
    model.to(job.device)
    for variant in THEIRS:
        name = f"transformers: {variant.name}"
        found[name] = job.report.find(name, partial(_theirs, job, model, variant), needs_seconds=4)


# ---- One variant ---------------------------------------------------------------------------------


def call_of(model: nn.Module, variant: Variant, device: torch.device, quick: bool) -> Callable[[], Any]:
    """Return a call of one forward pass of the variant in its precision. No graph is captured yet."""
    batch = images(QUICK_SIZE if quick else SIZE, variant.batch, device)
    pixels, mask = batch.pixels, batch.mask
    if variant.weights == "bfloat16" or variant.channels_last:
        model = copy.deepcopy(model)
    if variant.weights == "bfloat16":
        model, pixels = model.to(torch.bfloat16), pixels.to(torch.bfloat16)
    if variant.channels_last:
        model.get_submodule("backbone").to(memory_format=torch.channels_last)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
    plain: Callable[..., tuple[Tensor, Tensor]] = Plain(model)
    if variant.form.startswith("compiled"):
        plain = torch.compile(plain, dynamic=False)
    autocast = "tf32" if variant.weights == "bfloat16" else variant.precision

    def call() -> tuple[Tensor, Tensor]:
        with torch.no_grad(), precision(autocast, device):
            return plain(pixels, mask)

    return call


def _ours(job: Job, model: nn.Module, variant: Variant, finding: Facts) -> None:
    call = call_of(model, variant, job.device, job.quick)
    call()
    if variant.form.endswith("graph"):
        graph = captured(call)
        _time(job, graph.replay, variant.batch, finding)
    else:
        _time(job, call, variant.batch, finding)
    gc.collect()


def _runner(job: Job, model: DetectionModel, name: str, batch: int, finding: Facts) -> None:
    """Time the model as `predict` runs it, by graph, with pictures that are on the GPU. `from_host_ms` is the
    time with pictures that are on the host."""
    runner = cuda.Runner(model, job.device, PRECISIONS[name] or torch.float32)
    pictures = images(QUICK_SIZE if job.quick else SIZE, batch, job.device)
    on_host = pictures.to("cpu")
    with precision("fp32" if name == "fp32" else "tf32", job.device):
        started = time.perf_counter()
        for _ in range(2):  # the first call runs without a graph, and the second records one
            runner(pictures)
        finding["first_two_calls_ms"] = (time.perf_counter() - started) * 1e3
        _time(job, partial(runner, pictures), batch, finding)
        finding["from_host_ms"] = median_ms(
            partial(runner, on_host), job.device, quick=job.quick, budget_ms=200
        )
    gc.collect()


def _theirs(job: Job, model: nn.Module, variant: Variant, finding: Facts) -> None:
    batch = images(QUICK_SIZE if job.quick else SIZE, variant.batch, job.device)
    mask = (~batch.mask).long()

    def call() -> None:
        with torch.no_grad(), precision(variant.precision, job.device):
            model(pixel_values=batch.pixels, pixel_mask=mask)

    _time(job, call, variant.batch, finding)


def _time(job: Job, call: Callable[[], Any], batch: int, finding: Facts) -> None:
    if job.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    milliseconds = median_ms(call, job.device, quick=job.quick, budget_ms=300)
    finding["ms"], finding["pictures_per_second"] = milliseconds, batch * 1e3 / milliseconds
    if job.on_gpu:
        finding["host_ms"] = host_ms(call, repeats=5)
        finding["peak_bytes"] = torch.cuda.max_memory_allocated()


def compile_variant() -> None:
    """Compile COMPILED, so that step (f) finds it in the compiler's cache."""
    device = torch.device("cuda")
    model = detector(RECIPE).model.to(device)
    call_of(model, COMPILED, device, quick=False)()
    torch.cuda.synchronize()


# ---- The rest ------------------------------------------------------------------------------------


def _whole(job: Job, finding: Facts) -> None:
    """Time the computation from a decoded picture to detections.

    It includes resizing, normalisation, transfers and postprocessing.
    """
    import deformable_detr as dd

    size = QUICK_SIZE if job.quick else SIZE
    picture = np.random.default_rng(job.seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    for dtype in ("fp32", "bf16") if job.on_gpu else ("fp32",):
        recipe = QUICK_RECIPE if job.quick else RECIPE
        ours = dd.create(recipe, device=str(job.device), dtype=dtype)
        pixels = ours.preprocess(Image.fromarray(picture))
        finding[f"{dtype}_without_preprocessing_ms"] = median_ms(
            partial(ours.detect, [pixels], [size]), job.device, quick=job.quick, budget_ms=300
        )
        milliseconds = median_ms(
            partial(ours.predict, picture, threshold=0.0), job.device, quick=job.quick, budget_ms=500
        )
        finding[f"{dtype}_ms"], finding[f"{dtype}_pictures_per_second"] = milliseconds, 1e3 / milliseconds


def _profile(job: Job, model: DetectionModel, finding: Facts) -> None:
    runner = cuda.Runner(model, job.device, torch.bfloat16)
    call = partial(runner, images(SIZE, 1, job.device))
    for _ in range(2):
        call()
    finding.update(profiled("our runner, bf16, batch 1", call, job.device, job.output / "profile.txt"))


def _waits(job: Job, model: nn.Module, finding: Facts) -> None:
    call = call_of(model, Variant("bf16", 1), job.device, job.quick)
    call()
    with host_waits() as found:
        call()
    finding["waits"], finding["places"] = sum(found.values()), dict(found.most_common())


def _targets(found: dict[str, Facts], finding: Facts) -> None:
    speeds = {
        name: each["pictures_per_second"] for name, each in found.items() if "pictures_per_second" in each
    }
    ours = {name: speed for name, speed in speeds.items() if name.startswith("bf16, batch 1")}
    runner = speeds.get("our runner: bf16, batch 1")
    theirs = speeds.get(f"transformers: {Variant('bf16', 1).name}")
    finding["paper_v100_pictures_per_second"] = PAPER_V100_FPS
    if runner:
        finding["our runner, pictures per second"] = runner
        finding["our runner, times transformers"] = None if theirs is None else runner / theirs
    if ours:
        best = max(ours, key=lambda name: ours[name])
        finding["best"], finding["pictures_per_second"] = best, ours[best]
        finding["times the paper's V100"] = ours[best] / PAPER_V100_FPS
        finding["times transformers, eager both"] = (
            None if theirs is None else ours.get(Variant("bf16", 1).name, 0.0) / theirs
        )
        finding["times transformers, best"] = None if theirs is None else ours[best] / theirs

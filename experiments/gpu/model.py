"""Step (b): the whole model on the device, against the same model on the CPU."""

from __future__ import annotations

import subprocess
import sys
import warnings
from functools import partial

import numpy as np
import torch

import deformable_detr as dd
from deformable_detr.inference import cuda
from deformable_detr.inference.tta import augmented
from deformable_detr.models import DetectionModel
from deformable_detr.structures import DetectorOutput, ImageBatch

from .parts import Plain, detector, images, precision, tensors_of
from .report import Facts, Job, limit, relative_error, require

RECIPES = (
    "deformable_detr_r50",
    "deformable_detr_lite",
    "detr_r50",
    "deformable_detr_x101_dcn_two_stage",
)
QUICK_RECIPES = ("deformable_detr_lite",)
SIZE, QUICK_SIZE = (256, 320), (96, 128)
# Bounds of ‖GPU − CPU‖ / ‖CPU‖ for logits and boxes. TF32 keeps 10 bits of mantissa, bf16 7, fp16 10.
BOUNDS = {"fp32": 1e-4, "tf32": 2e-2, "bf16": 8e-2, "fp16": 2e-2}
NUM_CLASSES = 11


def run(job: Job) -> None:
    for recipe in QUICK_RECIPES if job.quick else RECIPES:
        job.report.find(recipe, partial(_against_cpu, job, recipe), needs_seconds=8)
    job.report.find("predict", partial(_predict, job))
    job.report.find("evaluate", partial(_evaluate, job))
    job.report.find("explain", partial(_explain, job))
    job.report.find("test-time augmentation", partial(_augmented, job))
    if job.on_gpu:
        job.report.find("memory of many graphs", partial(_many_graphs, job))
        job.report.find("batch of two, padded", partial(_padded, job))
    job.report.find("torch.compile", partial(_compiled, job), needs_seconds=40 if job.on_gpu else 5)
    if not job.quick:
        job.report.find("doctor", partial(_doctor, job))


# ---- Forward passes ------------------------------------------------------------------------------


def _against_cpu(job: Job, recipe: str, finding: Facts) -> None:
    """Compare a recipe's outputs on the device with those on the CPU, in each precision.

    A two-stage model chooses its queries by rank, so if rounding swaps two of them, rows of the output are
    swapped. Therefore its first stage is compared, and its last layer only if both chose the same queries.
    """
    made = detector(recipe, NUM_CLASSES, job.seed)
    pixels = images(QUICK_SIZE if job.quick else SIZE, 1, torch.device("cpu"), job.seed)
    with torch.no_grad():
        right = made.model(pixels)
    model = made.model.to(job.device)
    for name in ("fp32", "bf16") if job.quick else tuple(BOUNDS):
        if name in ("tf32", "fp16") and not job.on_gpu:
            continue
        with torch.no_grad(), precision(name, job.device):
            found = model(pixels.to(job.device))
        errors: dict[str, float] = {}
        if right.proposals is not None and found.proposals is not None:
            errors["first stage"] = relative_error(found.proposals.logits, right.proposals.logits)
            chosen = (found.predictions[0].boxes_cxcywh.cpu() - right.predictions[0].boxes_cxcywh).abs()
            finding[f"{name} queries that differ"] = int((chosen.amax(-1) > 0.01).sum())
        if right.proposals is None or finding[f"{name} queries that differ"] == 0:
            theirs = tensors_of(right)
            errors |= {key: relative_error(value, theirs[key]) for key, value in tensors_of(found).items()}
        finding[f"{name} errors"] = errors
        limit(finding, max(errors.values()), BOUNDS[name], name)
    _by_graph(job, model, pixels, right, finding)


def _by_graph(
    job: Job, model: DetectionModel, pixels: ImageBatch, right: DetectorOutput, finding: Facts
) -> None:
    """Compare the graphs that `predict` uses: a replayed graph must give the results of the same kernels
    without a graph, and these must be near the CPU's. A warning, which means that a model cannot be captured,
    fails the finding."""
    other = ImageBatch(torch.randn_like(pixels.pixels), pixels.mask)
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        if name == "fp16" and not job.on_gpu:
            continue
        runner = cuda.Runner(model, job.device, dtype)
        with warnings.catch_warnings(), precision("fp32", job.device):
            warnings.simplefilter("error")
            # The first call uses no graph, the second records and replays one, and the third replays it.
            plain, _, replayed = runner(pixels), runner(other), runner(pixels)
        for key in ("logits", "boxes_cxcywh"):
            error = relative_error(getattr(replayed, key), getattr(plain, key))
            finding[f"{name}, replayed {key}"] = error
            if name == "fp32":
                limit(finding, error, 1e-6, f"{name}, replayed {key}")
        if right.proposals is None:
            error = relative_error(replayed.logits, right.predictions[-1].logits)
            limit(finding, error, BOUNDS[name], f"{name} by graph")
        else:
            found, wanted = replayed.boxes_cxcywh.cpu(), right.predictions[-1].boxes_cxcywh
            moved = (found.float() - wanted).abs().amax(-1) > 0.01
            finding[f"{name} by graph, queries that differ"] = int(moved.sum())
            if name == "fp32":
                limit(finding, float(moved.float().mean()), 0.1, "fp32 by graph, share that differs")


def _padded(job: Job, finding: Facts) -> None:
    """Compare the outputs for a batch with pictures of two sizes, as in training, with the CPU's."""
    made = detector("deformable_detr_r50", NUM_CLASSES, job.seed)
    pictures = [torch.randn(3, 192, 256), torch.randn(3, 256, 160)]
    with torch.no_grad(), precision("fp32", job.device):
        right = tensors_of(made.model(pictures))
        found = tensors_of(made.model.to(job.device)([each.to(job.device) for each in pictures]))
    limit(finding, max(relative_error(found[key], right[key]) for key in right), BOUNDS["fp32"])


def _compiled(job: Job, finding: Facts) -> None:
    made = detector("deformable_detr_lite", NUM_CLASSES, job.seed)
    model = Plain(made.model.to(job.device))
    batch = images(QUICK_SIZE, 1, job.device, job.seed)
    backend = "inductor" if job.on_gpu else "eager"
    with torch.no_grad(), precision("fp32", job.device):
        right = model(batch.pixels, batch.mask)
        found = torch.compile(model, fullgraph=True, backend=backend)(batch.pixels, batch.mask)
    limit(finding, max(relative_error(a, b) for a, b in zip(found, right, strict=True)), 1e-3)


def _many_graphs(job: Job, finding: Facts) -> None:
    """Run pictures of twelve sizes twice each, and check that memory grows little after the first six.

    The oldest graphs must be freed.
    """
    made = detector("deformable_detr_r50", NUM_CLASSES, job.seed)
    runner = cuda.Runner(made.model.to(job.device), job.device, torch.float32)
    reserved = []
    for number in range(12):
        for _ in range(2):
            runner(images((256 + 32 * (number % 6), 320 + 32 * (number // 6)), 1, job.device, job.seed))
        torch.cuda.empty_cache()
        reserved.append(torch.cuda.memory_reserved())
    finding["reserved_bytes"] = reserved
    limit(finding, reserved[-1] / max(reserved[:6]), 2.0, "growth_from_six_shapes_to_twelve")


# ---- What users call -----------------------------------------------------------------------------


def _pictures(job: Job) -> list[str]:
    pictures = sorted((job.data / "val").iterdir())
    return [str(path) for path in pictures[: 2 if job.quick else 6]]


def _same(finding: Facts, found: list[dd.Detections], right: list[dd.Detections]) -> None:
    """Check that the numbers of detections agree to within one, and note how far their boxes are apart.

    Rounding may swap detections with nearly equal scores.
    """
    finding["detections"] = [len(each) for each in found]
    for ours, theirs in zip(found, right, strict=True):
        require(finding, abs(len(ours) - len(theirs)) <= 1, f"{len(ours)} detections, not {len(theirs)}")
        for box, label in zip(theirs.boxes_xyxy, theirs.labels, strict=True):
            distance = np.abs(ours.boxes_xyxy[ours.labels == label] - box).max(1, initial=0)
            nearest = float(distance.min()) if len(distance) else float("inf")
            finding["largest_distance_pixels"] = max(finding.get("largest_distance_pixels", 0.0), nearest)
    if finding.get("largest_distance_pixels", 0.0) > 1:
        finding["note"] = "a detection near the threshold may be on one side only"
    require(finding, sum(map(len, found)) > 0, "nothing was detected")


def _predict(job: Job, finding: Facts) -> None:
    pictures = _pictures(job)
    right = dd.load("demo", device="cpu").predict(list(pictures), threshold=0.4)
    ours = dd.load("demo", device=str(job.device))
    for _ in range(3):  # without a graph, recorded, replayed
        _same(finding, ours.predict(list(pictures), threshold=0.4), right)
    if job.on_gpu:
        for dtype in ("bf16", "fp16"):
            found = dd.load("demo", device=str(job.device), dtype=dtype).predict(pictures[0], threshold=0.4)
            require(finding, len(found) > 0, f"{dtype}: nothing was detected")


def _evaluate(job: Job, finding: Facts) -> None:
    found = dd.evaluate(dd.load("demo", device=str(job.device)), job.data, progress=False)
    finding["AP"], finding["AP50"] = found["AP"], found["AP50"]
    if job.on_gpu:
        right = dd.evaluate(dd.load("demo", device="cpu"), job.data, progress=False)
        finding["AP_on_cpu"] = right["AP"]
        limit(finding, abs(found["AP"] - right["AP"]), 0.01, "AP_difference")
    require(finding, found["AP"] > 0.1, f"AP is {found['AP']:.3f}")


def _explain(job: Job, finding: Facts) -> None:
    picture = _pictures(job)[0]
    right = dd.load("demo", device="cpu").explain(picture, threshold=0.4, at=[(40.0, 30.0)])
    found = dd.load("demo", device=str(job.device)).explain(picture, threshold=0.4, at=[(40.0, 30.0)])
    require(finding, len(found) == len(right), f"{len(found)} detections, not {len(right)}")
    require(finding, found.encoder is not None, "the encoder's looks are missing")
    if len(found) == len(right):
        pairs = [(found.queries.boxes_xyxy, right.queries.boxes_xyxy)]
        for ours, theirs in pairs:
            limit(finding, float(np.abs(ours - theirs).max(initial=0)), 0.5, "distance_pixels")


def _augmented(job: Job, finding: Facts) -> None:
    pictures = _pictures(job)
    right = augmented(dd.load("demo", device="cpu")).predict(list(pictures), threshold=0.4)
    found = augmented(dd.load("demo", device=str(job.device))).predict(list(pictures), threshold=0.4)
    _same(finding, found, right)


def _doctor(job: Job, finding: Facts) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deformable_detr", "doctor"], capture_output=True, text=True, timeout=60
    )
    finding["output"] = (done.stdout + done.stderr).strip().splitlines()[-30:]
    require(finding, done.returncode == 0, f"doctor ended with {done.returncode}")

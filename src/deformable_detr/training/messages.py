"""The lines that training prints before it starts."""

from __future__ import annotations

from ..data.formats import NOTES
from ..data.formats.losses import most_is_lost
from ..data.records import Split
from ..evaluation.average_precision import COCO_LIMIT
from ..evaluation.limits import usual_limit
from ..inference.convolutions import has_depthwise
from ..inference.devices import cpu_has_bfloat16
from ..ops import native_available
from .optimisation import batch_size_factor
from .parts import Parts


def opening_lines(run: Parts) -> list[str]:
    """Return lines about the model, the data and their problems, the updates and the learning rate."""
    settings, split, val = run.config.train, run.train_split, run.val_split
    batch_size, accumulate = run.micro_batches
    factor = batch_size_factor(settings, run.total_batch)
    boxes = sum(len(record) for record in split.images)
    empty = sum(record.crowd.all() for record in split.images)
    trainable = sum(p.numel() for p in run.state.model.parameters() if p.requires_grad)
    measured = "no validation split" if val is None else f"{len(val)} images to evaluate on ({val.name})"
    warnings = [f"warning: {lost}" for part in (split, val) if part and (lost := most_is_lost(part))]
    lines = [
        *warnings,
        f"{run.config.recipe}: {trainable:,} trainable parameters on {run.processes.device}, "
        f"computed in {str(run.dtype).removeprefix('torch.')}",
        *_faster_format(run),
        f"{split.format} data: {len(split)} training images, {boxes} boxes, {len(split.classes)} classes; "
        f"{measured}",
        *([f"training images without an object, learned as background: {empty}"] if empty else []),
        *run.fitted,
        *_detections_that_count(val),
        f"{run.last_step} updates of {batch_size} x {accumulate} x "
        f"{run.processes.world_size} images (batch x accumulate x processes), "
        f"{run.updates_per_epoch} per epoch",
        f"learning rate {settings.lr * factor:.2e} (backbone {settings.lr_backbone * factor:.2e}): "
        f"rule '{settings.lr_rule}', {settings.lr:.2e} is for {settings.lr_batch_size} images per update",
    ]
    if run.state.routes:
        extra = sum(parameter.numel() for parameter in run.state.routes.parameters())
        unsaved = f" ({extra:,} parameters, which are not saved with the model)" if extra else ""
        lines.append(f"routes, which are used only in training: {', '.join(run.state.routes)}{unsaved}")
    problems = [problem for problem in split.problems if problem.kind not in NOTES]
    if problems:
        lines.append(
            f"problems in the data: {len(problems)}; broken boxes and missing pictures are left out, "
            "`deformable-detr inspect` lists them"
        )
    if run.state.step:
        lines.append(f"resuming after update {run.state.step}")
    return lines


def _faster_format(run: Parts) -> list[str]:
    """Mention bfloat16 where it was measured to be faster: for depthwise backbones with native kernels."""
    is_faster = (
        run.processes.device.type == "cpu"
        and cpu_has_bfloat16()
        and native_available()
        and has_depthwise(run.state.model.backbone)
    )
    if run.config.train.precision != "auto" or run.state.step or not is_faster:
        return []
    return [
        "this processor also has bfloat16, which is faster unless pictures are small: --train.precision bf16"
    ]


def _detections_that_count(split: Split | None) -> list[str]:
    limit = COCO_LIMIT if split is None else usual_limit(split)
    if split is None or limit == COCO_LIMIT:
        return []
    return [
        f"an image of {split.name} has {limit // 2} objects: up to {limit} detections of each are measured"
    ]

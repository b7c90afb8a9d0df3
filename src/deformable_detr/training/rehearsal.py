"""Timed updates from which `forecast.py` predicts the cost of training; their results are discarded."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import torch

from ..boxes import xyxy_to_cxcywh
from ..data.preprocessing import input_size
from ..data.records import ImageRecord
from ..evaluation import evaluate
from ..structures import ImageBatch, Target
from .parts import Parts
from .run import take_update


def timed_updates(run: Parts) -> Iterator[float]:
    """Train for at most one epoch, and yield each update's seconds, including the wait for its images.

    Raises:
        UserError: if a picture cannot be read or does not have its annotated size.
        NonFiniteError: if a loss or a clipped gradient is not finite.
    """
    clock = time.perf_counter()
    for micro_batches in run.updates(0, run.updates_per_epoch):
        take_update(run, micro_batches)
        _synchronize(run.processes.device)
        seconds, clock = time.perf_counter() - clock, time.perf_counter()
        yield seconds


def take_largest_update(run: Parts) -> tuple[int, int]:
    """Take an update with the largest batch that the data allow, and return its height and width in pixels.

    The pixels are zeros, and the objects are those of the training images that have the most objects.

    Raises:
        NonFiniteError: if a loss or a clipped gradient is not finite.
    """
    data, (batch_size, accumulate) = run.config.data, run.micro_batches
    shorter_side = data.image_size if data.augmentation == "none" else max(data.train_sizes)
    records = run.train_split.images
    sizes = [input_size(record.size, data, shorter_side) for record in records]
    size = max(height for height, _ in sizes), max(width for _, width in sizes)
    fullest = sorted(records, key=lambda record: -record.num_objects)[:batch_size]
    targets = tuple(_target_of(record) for record in (fullest * batch_size)[:batch_size])
    images = ImageBatch.from_images([torch.zeros(3, *size)] * batch_size)
    take_update(run, [(images, targets)] * accumulate)
    _synchronize(run.processes.device)
    return size


def evaluation_seconds(run: Parts, num_images: int) -> float:
    """Estimate the seconds of an evaluation from the first `num_images` images of its split.

    Without a split to evaluate on, the result is 0.

    Raises:
        UserError: if one of these images cannot be read or does not have its annotated size.
    """
    split = run.val_split
    if split is None:
        return 0.0
    detector = run.detector()
    evaluate(detector, replace(split, images=split.images[:1]), progress=False)  # warms up: builds its runner
    part = replace(split, images=split.images[:num_images])
    started = time.perf_counter()
    evaluate(detector, part, progress=False)
    return (time.perf_counter() - started) * len(split) / len(part)


def _target_of(record: ImageRecord) -> Target:
    """Return the objects of a picture before any augmentation, without crowd regions."""
    height, width = record.size
    boxes_xyxy = torch.from_numpy(record.boxes_xyxy[~record.crowd]).float()
    boxes_cxcywh = xyxy_to_cxcywh(boxes_xyxy) / torch.tensor([width, height, width, height])
    return Target(torch.from_numpy(record.labels[~record.crowd]), boxes_cxcywh, record.image_id)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()

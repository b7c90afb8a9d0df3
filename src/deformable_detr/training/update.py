"""One update: the forward and backward passes of its micro-batches, and a step of the optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import NonFiniteError
from ..loss import Losses, Stage
from ..structures import BatchCount, DetectorOutput, FeatureBatch, ImageBatch, Target
from .precision import autocast, gradient_scaler
from .processes import Processes

MicroBatch = tuple[ImageBatch | FeatureBatch, tuple[Target, ...]]
# The type of loss.SetCriterion, for example. The stages are those of routes, which are used only in training.
Criterion = Callable[[DetectorOutput, Sequence[Target], BatchCount, Sequence[Stage]], Losses]

_ADVICE = "lower the learning rate (--train.lr), or look at the images with `deformable-detr inspect`"


def update(
    model: nn.Module,
    criterion: Criterion,
    optimizer: torch.optim.Optimizer,
    micro_batches: Sequence[MicroBatch],
    *,
    count: BatchCount,
    dtype: torch.dtype = torch.float32,
    scaler: torch.amp.GradScaler | None = None,
    clip_norm: float = 0.0,
    number: int = 1,
) -> dict[str, float]:
    """Update the weights of `model` by one step of `optimizer`.

    Args:
        model: a `Learner`, perhaps wrapped by `Processes.share_gradients`.
        criterion: the function that computes the losses of a micro-batch.
        optimizer: the optimizer of the weights.
        micro_batches: this process's part of the update, at least one micro-batch, on any device.
        count: this process's share of the objects and images of the whole update, from `count_update`.
        dtype: the type in which the forward pass computes.
        scaler: the gradient scaler, needed only for float16. It skips an update whose gradient is not finite.
        clip_norm: the maximum norm of the gradient; larger gradients are scaled down. 0 sets no maximum.
        number: the number of the update, for messages.

    Returns:
        This process's `loss` and its terms by name, summed over the micro-batches, and `gradient_norm`, the
        norm before clipping, if gradients are clipped and finite.

    Raises:
        NonFiniteError: if a loss is not finite or, with `clip_norm` and without float16, the gradient is not.
            The message names the update and its images. The weights have not changed.
    """
    device = next(model.parameters()).device
    scaler = gradient_scaler(device, torch.float32) if scaler is None else scaler
    model.train()
    parts: list[dict[str, Tensor]] = []  # the losses of each micro-batch, still on the device
    for index, (images, targets) in enumerate(to_device(each, device) for each in micro_batches):
        with _without_exchange(model, index < len(micro_batches) - 1):
            with autocast(device, dtype):
                output, further = model(images, targets)
            losses = _losses(partial(criterion, output, targets, count, further), number)
            scaler.scale(losses.total).backward()
        parts.append({"loss": losses.total.detach(), **losses.terms})
    norm = None
    if clip_norm > 0:
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    *of_parts, gradient_norm = _as_numbers([*parts, {} if norm is None else {"gradient_norm": norm}])
    for losses_of_part, (_, targets) in zip(of_parts, micro_batches, strict=True):
        _require_finite(losses_of_part["loss"], targets, number)
    sums = {name: sum(part[name] for part in of_parts) for name in parts[0]}
    if all(map(math.isfinite, gradient_norm.values())):
        sums |= gradient_norm
    elif not scaler.is_enabled():
        names = _names_of([target for _, targets in micro_batches for target in targets])
        raise NonFiniteError(
            f"update {number}: the gradient of images {names} is {gradient_norm['gradient_norm']}; {_ADVICE}"
        )
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    return sums


def count_update(micro_batches: Sequence[MicroBatch], num_queries: int, processes: Processes) -> BatchCount:
    """Return one process's share of the objects, matched queries and images of the whole update.

    The share is the total, of at least one object, divided by the number of processes. Every process must
    call this function, because the totals are sums over the processes.

    Args:
        micro_batches: this process's part of the update.
        num_queries: the number of queries of the model, the maximum of matched queries per image.
        processes: the processes that train together.
    """
    own = BatchCount.from_targets([target for _, targets in micro_batches for target in targets], num_queries)
    objects, matched, images = processes.sum([own.objects, own.matched, own.images])
    return BatchCount(objects, matched, images).share_of(processes.world_size)


def to_device(micro_batch: MicroBatch, device: torch.device) -> MicroBatch:
    """Return the micro-batch with its pixels (or feature maps), masks, labels and boxes on a device."""
    images, targets = micro_batch
    return images.to(device), tuple(target.to(device) for target in targets)


@contextmanager
def _without_exchange(model: nn.Module, is_active: bool) -> Iterator[None]:
    """Skip the exchange of gradients in the block if `is_active`.

    Processes exchange gradients only once per update, with its last micro-batch.
    """
    if is_active and isinstance(model, DistributedDataParallel):
        with model.no_sync():
            yield
    else:
        yield


def _losses(criterion: Callable[[], Losses], number: int) -> Losses:
    try:
        return criterion()
    except NonFiniteError as error:
        raise NonFiniteError(f"update {number}: {error}; {_ADVICE}") from error


def _require_finite(loss: float, targets: Sequence[Target], number: int) -> None:
    if not math.isfinite(loss):
        raise NonFiniteError(f"update {number}: the loss of images {_names_of(targets)} is {loss}; {_ADVICE}")


def _as_numbers(groups: Sequence[Mapping[str, Tensor]]) -> list[dict[str, float]]:
    """Convert the scalars of all groups to numbers, with a single wait for the GPU."""
    values = iter(torch.stack([scalar for group in groups for scalar in group.values()]).tolist())
    return [{name: next(values) for name in group} for group in groups]


def _names_of(targets: Sequence[Target]) -> str:
    return ", ".join(str(target.image_id) for target in targets)

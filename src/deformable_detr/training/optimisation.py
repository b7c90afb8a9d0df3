"""Optimisation: parameter groups, learning rate, moving average (paper, section 5; specification §6.1, §6.2).

The learning rate and the decay of the moving average depend only on the configuration and the update's
number, so a resumed run needs no scheduler state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..config import TrainConfig

SAMPLING_NAMES = ("reference_points", "sampling_offsets")


def parameter_groups(
    model: nn.Module, config: TrainConfig, routes: nn.Module | None = None
) -> list[dict[str, Any]]:
    """Return AdamW's groups in the order `base`, `backbone`, `sampling`.

    `backbone` contains the parameters of the backbone, `sampling` those of projections outside the backbone
    that determine where to sample, and `base` all others. Parameters that are not trained, and groups without
    parameters, are left out. Each group has `name`, `params`, `lr` and `initial_lr`, the learning rate before
    `batch_size_factor` and `learning_rate_factor`. `routes` may have further parameters, which are used only
    in training.
    """
    further = () if routes is None else routes.named_parameters(prefix="routes")
    groups: dict[str, list[nn.Parameter]] = {"base": [], "backbone": [], "sampling": []}
    for name, parameter in (*model.named_parameters(), *further):
        if not parameter.requires_grad:
            continue
        if name.startswith("backbone."):
            groups["backbone"].append(parameter)
        elif any(part in name for part in SAMPLING_NAMES):
            groups["sampling"].append(parameter)
        else:
            groups["base"].append(parameter)
    rates = {
        "base": config.lr,
        "backbone": config.lr_backbone,
        "sampling": config.lr * config.lr_sampling_multiplier,
    }
    return [
        {"name": name, "params": parameters, "lr": rates[name], "initial_lr": rates[name]}
        for name, parameters in groups.items()
        if parameters
    ]


def adamw(groups: list[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    """Return AdamW, the paper's optimizer. Its fused form takes one pass over the weights, not a dozen."""
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)


def batch_size_factor(config: TrainConfig, total_batch: int) -> float:
    """Return the factor by which `lr_rule` changes the learning rates for `total_batch` images per update."""
    ratio = total_batch / config.lr_batch_size
    return {"none": 1.0, "sqrt": math.sqrt(ratio), "linear": ratio}[config.lr_rule]


def learning_rate_factor(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """Return the factor on the learning rates at the update with the number `step`, which counts from 0.

    The factor rises linearly to 1 during the warm-up. Then the schedule "step" multiplies it by `lr_gamma`
    after each number of epochs in `lr_drop_epochs`, and the schedule "cosine" lowers it to 0 at the end of
    the last epoch. `max_steps` does not change the schedule.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "step":
        epoch = step // steps_per_epoch
        drops = sum(epoch >= drop for drop in config.lr_drop_epochs)
        return float(config.lr_gamma**drops)
    total = max(config.epochs * steps_per_epoch - config.warmup_steps, 1)
    progress = min((step - config.warmup_steps) / total, 1.0)
    return 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set the learning rate of each group to its `initial_lr` times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


@torch.no_grad()
def update_moving_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Set average ← decay·average + (1 - decay)·model, after update `step` (from 1).

    The decay rises to its value over the first updates; otherwise the random initial weights would stay in
    the average for thousands of updates. Only parameters are averaged; buffers of `average` do not change.
    """
    decay = min(decay, (1 + step) / (10 + step))
    target: list[Tensor] = list(average.parameters())
    source: list[Tensor] = list(model.parameters())
    torch._foreach_lerp_(target, source, 1 - decay)


def cpu_copy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of tensors for saving: contiguous, on the CPU, and independent of the originals."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}


def use_layout_of_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Store the optimizer's tensors in the memory layout of their parameters, in place.

    Tensors that were loaded from a saved run have the layout of that run. The layout of the parameters
    depends on the device, and fused AdamW pairs the numbers of a parameter and its tensors by their order in
    memory.
    """
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)

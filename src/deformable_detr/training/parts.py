"""The parts of a run, built without starting it. `run.py` trains with them; `rehearsal.py` times updates."""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.text import Text
from torch import nn

from .. import checkpoint as checkpoints
from ..checkpoint import Checkpoint
from ..classification import build_classification
from ..config import RunConfig, TrainConfig
from ..data.loading import MicroBatchKeys, Samples, steps_per_epoch, training_loader
from ..data.records import Split
from ..errors import UserError
from ..inference.convolutions import fastest_layout
from ..inference.detector import Detector
from ..inference.loading import new_checkpoint
from ..loss import SetCriterion
from ..models import DetectionModel
from ..models.activation_checkpointing import checkpoint_activations
from ..models.relu6 import keep_only_results_of_relu6
from ..run_folder.names import CHECKPOINTS, FEATURE_CACHE, STATE_FILE
from ..words import printable
from .feature_cache import CacheLimits, FeatureCache
from .fitting import fit_to_data
from .learner import Learner
from .optimisation import adamw, parameter_groups
from .precision import autocast, gradient_scaler, resolve_precision
from .processes import Processes, join_processes
from .replica import replica_for_training
from .routes import build_routes
from .settings import config_for_classes, read_splits
from .state import Identity, TrainingState, load_state, read_state, require_state, save_state
from .transfer import transfer
from .update import MicroBatch


@dataclass(frozen=True)
class Parts:
    """The parts that one process needs for training.

    Attributes:
        data: the folder of the data set.
        output: the run folder.
        config: the configuration, adapted to the data.
        val_split: the split to evaluate on; None if the data have none.
        start: the contents of a checkpoint, with the same model as `state`.
        state: everything that changes during training.
        learner: the state's model, or a faster one with its parameters, and the routes, wrapped so that
            several processes share their gradients.
        dtype: the type in which the forward pass computes.
        cache: the backbone's features; None if they are computed in every update.
        fitted: lines for the log that state which settings were adapted to the data.
    """

    data: str | Path
    output: Path
    config: RunConfig
    train_split: Split
    val_split: Split | None
    processes: Processes
    console: Console
    dtype: torch.dtype
    start: Checkpoint
    state: TrainingState
    learner: nn.Module
    criterion: SetCriterion
    cache: FeatureCache | None
    fitted: Sequence[str] = ()

    @property
    def total_batch(self) -> int:
        """The number of images per update, over all micro-batches and processes."""
        return total_batch_of(self.config, self.processes)

    @property
    def micro_batches(self) -> tuple[int, int]:
        """The number of images of each micro-batch, and of micro-batches per update, in this process."""
        return micro_batches_on(self.processes.device, self.config.train)

    @property
    def updates_per_epoch(self) -> int:
        return steps_per_epoch(len(self.train_split), self.total_batch)

    @property
    def last_step(self) -> int:
        """The number of updates of the whole run, at most `train.max_steps`."""
        settings = self.config.train
        steps = settings.epochs * self.updates_per_epoch
        return steps if settings.max_steps is None else min(steps, settings.max_steps)

    def updates(self, first: int, end: int) -> Generator[list[MicroBatch]]:
        """Yield this process's micro-batches of each update, from number `first` to `end` - 1 of the run.

        The first update of the run has the number 0.

        Raises:
            UserError: if a picture cannot be read or does not have its annotated size, or features cannot be
                written to the cache.
        """
        if first >= end:
            return
        settings = self.config.train
        epoch, start_step = divmod(first, self.updates_per_epoch)
        batch_size, accumulate = self.micro_batches
        order: dict[str, Any] = {
            "batch_size": batch_size,
            "accumulate": accumulate,
            "seed": settings.seed,
            "epoch": epoch,
            "start_step": start_step,
            "num_updates": end - first,
            "rank": self.processes.rank,
            "world_size": self.processes.world_size,
            "balance": settings.balance,
        }
        batches: Iterator[MicroBatch]
        if self.cache is None:
            batches = iter(training_loader(self.train_split, self.config.data, **order))
        else:
            batches = map(self.cache.__getitem__, MicroBatchKeys(self.train_split, **order))
        for _ in range(end - first):
            yield list(islice(batches, accumulate))

    def detector(self) -> Detector:
        """Return a detector with the current weights, or with their moving average if there is one."""
        return Detector.of(replace(self.start, model=self.state.model_to_keep), self.processes.device)

    def save_checkpoint(self, name: str) -> None:
        if self.processes.is_first:
            self.detector().save(self.output / CHECKPOINTS / name)
        self.processes.wait()

    def save_state(self) -> None:
        if self.processes.is_first:
            save_state(self.output, self.state, Identity.from_split(self.train_split, self.total_batch))
        self.processes.wait()


def build_parts(
    data: str | Path,
    config: RunConfig,
    output: Path,
    *,
    init_from: str | Path | None = None,
    resume: bool = False,
    device: str = "auto",
) -> Parts:
    """Read the data, build the model and its optimizer, and load the state of a stopped run or another model.

    No file is written to `output`. The arguments are those of `train`, except that `config` is complete and
    `resume` is not "auto". With `resume`, `init_from` is not read.

    Raises:
        UserError: if the data, `init_from` or the backbone's weights cannot be read, there is no object to
            train on, the device is missing, the settings do not fit the data, the model or the device,
            `output` contains a run (or, with `resume`, none), or the state of the run cannot be read or does
            not fit the settings and the data.
    """
    processes = join_processes(device)
    processes.from_first(partial(require_room, output, resume))
    train_split, val_split = read_splits(data, config)
    config = config_for_classes(config, train_split)
    config, fitted = fit_to_data(config, train_split, total_batch_of(config, processes))
    settings = config.train
    dtype = resolve_precision(settings.precision, processes.device)
    console = Console(quiet=not processes.is_first)

    torch.manual_seed(settings.seed)
    start = _untrained(config, train_split, pretrained=not resume and init_from is None)
    if init_from is not None and not resume:
        for sentence in transfer(checkpoints.load(init_from), start).sentences():
            console.print(Text(printable(sentence)))
    criterion = SetCriterion(build_classification(config.model, settings.loss), settings.loss)
    routes = build_routes(config, start.model, criterion)
    state = _prepare(start, routes, config, processes.device, dtype)
    model = replica_for_training(state.model, processes.device)
    parts = Parts(
        data=data,
        output=output,
        config=config,
        train_split=train_split,
        val_split=val_split,
        processes=processes,
        console=console,
        dtype=dtype,
        start=start,
        state=state,
        # Without auxiliary losses, the earlier layers' heads get no gradient.
        learner=processes.share_gradients(
            Learner(model, state.routes), some_unused=not settings.loss.auxiliary
        ),
        criterion=criterion,
        cache=_feature_cache(model, train_split, config, output, processes, dtype),
        fitted=fitted,
    )
    if resume:
        content = processes.from_first(partial(read_state, output))
        load_state(content, output, state, Identity.from_split(train_split, parts.total_batch))
    return parts


def total_batch_of(config: RunConfig, processes: Processes) -> int:
    """Return the number of images per update, over all micro-batches and processes."""
    return config.train.batch_size * config.train.accumulate * processes.world_size


def micro_batches_on(device: torch.device, settings: TrainConfig) -> tuple[int, int]:
    """Return the number of images of each micro-batch, and of micro-batches per update, on a device.

    Unless `batching` has the images computed one by one, they are `batch_size` and `accumulate`.
    """
    if settings.batching == "single" or (settings.batching == "auto" and device.type == "cpu"):
        return 1, settings.batch_size * settings.accumulate
    return settings.batch_size, settings.accumulate


def require_room(output: Path, resume: bool) -> None:
    """Raise a `UserError` if `output` contains a run; with `resume`, raise it if `output` contains none."""
    if resume:
        require_state(output)
    elif (output / STATE_FILE).exists():
        raise UserError(
            f"{output} already contains a run: add --resume to continue it, or choose another --output."
        )


def _untrained(config: RunConfig, split: Split, *, pretrained: bool) -> Checkpoint:
    # The first process's weights are sent to all others, but every process can read the file.
    weights = config.train.backbone_weights if pretrained else None
    data = replace(config.data, images=None)  # a model may be passed on, but the pictures' place is private
    return new_checkpoint(config.model, split.classes, data, config.recipe, weights)


def _prepare(
    start: Checkpoint, routes: nn.ModuleDict, config: RunConfig, device: torch.device, dtype: torch.dtype
) -> TrainingState:
    """Return the state before the first update, whose model is that of `start`, prepared in place."""
    settings = config.train
    model = start.model.to(device)
    if settings.lr_backbone == 0:
        model.backbone.requires_grad_(False)
    model.backbone.to(memory_format=fastest_layout(model.backbone, device))
    average = copy.deepcopy(model) if settings.ema_decay > 0 else None
    keep_only_results_of_relu6(model.backbone)
    model.decoder.look_forward_twice = settings.look_forward_twice
    if settings.activation_checkpointing:
        checkpoint_activations(model)
    optimizer = adamw(parameter_groups(model, settings, routes.to(device)), settings)
    return TrainingState(model, average, optimizer, gradient_scaler(device, dtype), routes=routes)


def _feature_cache(
    model: DetectionModel,
    split: Split,
    config: RunConfig,
    output: Path,
    processes: Processes,
    dtype: torch.dtype,
) -> FeatureCache | None:
    settings = config.train
    if not settings.cache_features:
        return None
    return FeatureCache(
        Samples(split, config.data, settings.seed),
        model.backbone,
        processes.device,
        output / FEATURE_CACHE / str(processes.rank),
        CacheLimits(memory=int(settings.cache_memory_gb * 1e9), files=int(settings.cache_disk_gb * 1e9)),
        partial(autocast, processes.device, dtype),
    )

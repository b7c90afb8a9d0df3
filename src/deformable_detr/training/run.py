"""Training in a single loop (paper, section 5; specification §6).

A run folder contains `config.yaml`, `checkpoints/{last,best}/`, `training_state.pt`, `metrics.jsonl`,
TensorBoard's event files, `environment.jsonl` (a line for each start) and `report.html`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from rich.console import Console
from rich.text import Text

from ..config import RunConfig, override, read_config, to_dict
from ..data.loading import lost_workers_as_user_errors
from ..data.seeds import seed_sequence
from ..errors import TrainingInterruptedError, UserError
from ..evaluation import evaluate
from ..files import remove_abandoned, write_text
from ..inference.detector import Detector
from ..run_folder.lock import locked
from ..run_folder.log import TrainingLog, note_start
from ..run_folder.names import BEST, LAST, RUN_CONFIG_FILE, STATE_FILE
from ..system.allocator import release_free_memory
from ..words import printable
from .choice import choice_line
from .finish import finish
from .messages import opening_lines
from .optimisation import (
    batch_size_factor,
    learning_rate_factor,
    set_learning_rates,
    update_moving_average,
)
from .parts import Parts, build_parts, require_room
from .processes import Processes, join_processes
from .settings import describe_data, names_a_recipe, resolve_config
from .signals import StopNow, StopRequest, catch_stop_signals
from .update import MicroBatch, count_update, update

# On a CPU, free memory is released each time this many updates are done. Otherwise gaps between buffers of
# varying size accumulate.
RELEASE_EVERY = 25


def train(
    data: str | Path,
    recipe: str | RunConfig | None = None,
    output: str | Path = "runs/train",
    *,
    config: str | Path | None = None,
    init_from: str | Path | None = None,
    resume: bool | Literal["auto"] = False,
    device: str = "auto",
    **overrides: Any,
) -> Detector:
    """Train a detector; under torchrun, call this in every process.

    Only the first process reads and writes the run folder, except for the features of `train.cache_features`,
    which each process stores there. The data and the files of `init_from` and of the backbone's weights must
    be on every machine.

    Args:
        data: a folder in COCO, Pascal VOC or YOLO layout, with a split `train` and, to choose the best
            checkpoint, `val` (or else `test`).
        recipe: a name in `recipes.RECIPES`, or a whole `RunConfig`. None means the recipe of the resumed run,
            of `config` or of `init_from`; if there is none, `deformable_detr_lite` on a CPU and
            `deformable_detr_r50_two_stage` on a GPU.
        output: the run folder. It must not contain a run yet, except with `resume`.
        config: a YAML file with fields of `RunConfig`; precedence is recipe < config < overrides.
        init_from: a model to start from; its classes may differ.
        resume: True to continue the run in `output` exactly where it stopped; "auto" to do so if it saved a
            state, and to start a run otherwise.
        device: `auto`, `cpu` or `cuda`; CUDA_VISIBLE_DEVICES and torchrun choose the GPU.
        overrides: fields by dotted path or by name: `**{"train.epochs": 12}`, `epochs=12`, `num_queries=50`.

    Returns:
        The detector with the best weights, or with the last ones if there was no evaluation.

    Raises:
        UserError: if a setting is unknown, out of range or unsuitable for the data or the device, the data,
            `config`, `init_from` or a file of the run cannot be read, there is no object to train on, the
            device is missing, `output` contains a run (or none to resume), is in use or cannot be written, or
            a process that reads pictures is lost.
        NonFiniteError: if the loss is not finite or, with `train.clip_norm` and without float16, the gradient
            is not. The message names the update and its images.
        TrainingInterruptedError: if Ctrl-C or SIGTERM stopped the run; its state is saved.
    """
    if resume not in (True, False, "auto"):
        raise UserError(f"resume must be True, False or auto, not {resume}.")
    output = Path(output)
    processes = join_processes(device)
    resumes = processes.from_first(partial(_resumes, output, resume))
    base = processes.from_first(partial(_resolve, recipe, output, config, init_from, resumes, device))
    settings = override(base, overrides)
    with locked(output) if processes.is_first else nullcontext():
        if processes.is_first and not names_a_recipe(recipe, config, init_from, resumes):
            _say_what_was_chosen(data, settings, output, device, processes)
        return _train(build_parts(data, settings, output, init_from=init_from, resume=resumes, device=device))


def _say_what_was_chosen(
    data: str | Path, settings: RunConfig, output: Path, device: str, processes: Processes
) -> None:
    """Print which recipe was chosen for this machine and, if only one process trains, how long it will take.

    Raises:
        UserError: if only one process trains and `output` already contains a run.
    """
    alone, console = processes.world_size == 1, Console()
    if alone:
        require_room(output, resume=False)  # before any time is spent on measuring updates
    line = choice_line(data, settings, device, console, alone=alone)
    console.print(line, highlight=False, soft_wrap=True)


def _resumes(output: Path, resume: bool | Literal["auto"]) -> bool:
    return (output / STATE_FILE).is_file() if resume == "auto" else resume


def _train(run: Parts) -> Detector:
    for line in opening_lines(run):  # which may contain names from the data
        run.console.print(Text(printable(line)), soft_wrap=True)
    _open_folder(run)
    with (
        TrainingLog(
            run.output,
            run.console,
            run.processes.is_first,
            first_step=run.state.step,
            closed_step=run.state.closed_step,
            last_step=run.last_step,
        ) as log,
        catch_stop_signals() as stop,
        lost_workers_as_user_errors(),
        nullcontext() if run.cache is None else closing(run.cache),
        closing(run.updates(run.state.step, run.last_step)) as updates,
    ):
        try:
            _train_epochs(run, updates, log, stop)
        except StopNow:
            if run.processes.world_size == 1:  # otherwise, it was saved before the evaluation
                run.save_state()
            raise _interrupted(run) from None
    if run.last_step == 0:
        run.save_checkpoint(LAST)
        run.save_state()
    return finish(run)


def _train_epochs(
    run: Parts, updates: Iterator[list[MicroBatch]], log: TrainingLog, stop: StopRequest
) -> None:
    """Train until the last update; evaluate and save at the ends of epochs.

    A resumed run may start in the middle of an epoch, or at its end before the evaluation.
    """
    settings, state = run.config.train, run.state
    while state.closed_step < run.last_step:
        epoch = state.closed_step // run.updates_per_epoch
        epoch_end = min((epoch + 1) * run.updates_per_epoch, run.last_step)
        clock = time.perf_counter()
        while state.step < epoch_end:
            losses = take_update(run, _next(updates, run, stop))
            seconds, clock = time.perf_counter() - clock, time.perf_counter()
            log.update(
                epoch=epoch,
                step=state.step,
                losses=losses,
                rates={group["name"]: group["lr"] for group in state.optimizer.param_groups},
                images=run.total_batch,
                seconds=seconds,
                every=settings.log_every,
            )
            if run.processes.any(stop.requested):
                run.save_state()
                raise _interrupted(run)
            if settings.checkpoint_every and state.step % settings.checkpoint_every == 0:
                run.save_state()

        metrics: dict[str, Any] | None = None
        is_end = state.step >= run.last_step
        if run.val_split is not None and (is_end or (epoch + 1) % settings.evaluate_every == 0):
            # Before the evaluation, because torchrun kills processes that do not stop within 30 seconds.
            run.save_state()
            with log.paused(), stop.at_once():
                metrics = evaluate(run.detector(), run.val_split, progress=False)
        log.epoch(epoch, state.step, metrics)
        run.save_checkpoint(LAST)
        if metrics is not None and state.is_best(metrics["AP"]):
            state.best_ap = metrics["AP"]
            run.save_checkpoint(BEST)
        state.closed_step = state.step
        run.save_state()
        if run.cache is not None and run.cache.num_recalled == 0:
            run.console.print(run.cache.describe(), highlight=False, soft_wrap=True)


def _next(updates: Iterator[list[MicroBatch]], run: Parts, stop: StopRequest) -> list[MicroBatch]:
    """Return the next update's micro-batches.

    A signal interrupts the wait for them, except if other processes would then wait for this one.
    """
    with stop.at_once() if run.processes.world_size == 1 else nullcontext():
        return next(updates)


def _interrupted(run: Parts) -> TrainingInterruptedError:
    return TrainingInterruptedError(
        f"stopped after update {run.state.step} of {run.last_step}; add --resume to continue in {run.output}"
    )


def take_update(run: Parts, micro_batches: list[MicroBatch]) -> dict[str, float]:
    """Take the run's next update, and return this process's losses and `gradient_norm`, as `update` does.

    The learning rate, the dropout and the decay of the moving average depend on the update's number.

    Raises:
        NonFiniteError: if the loss is not finite or, with `train.clip_norm` and without float16, the gradient
            is not.
    """
    settings, state = run.config.train, run.state
    factor = learning_rate_factor(settings, state.step, run.updates_per_epoch)
    set_learning_rates(state.optimizer, factor * batch_size_factor(settings, run.total_batch))
    # These seeds have three numbers, and those of samples one or two, so no random stream is used twice.
    key = (state.step, run.processes.rank, 0)
    torch.manual_seed(int(seed_sequence(settings.seed, *key).generate_state(1, "uint64")[0]))
    losses = update(
        run.learner,
        run.criterion,
        state.optimizer,
        micro_batches,
        count=count_update(micro_batches, run.config.model.num_queries, run.processes),
        dtype=run.dtype,
        scaler=state.scaler,
        clip_norm=settings.clip_norm,
        number=state.step + 1,
    )
    state.step += 1
    if state.average is not None:
        update_moving_average(state.average, state.model, settings.ema_decay, state.step)
    if state.step % RELEASE_EVERY == 0 and run.processes.device.type == "cpu":
        release_free_memory()
    return losses


def _resolve(
    recipe: str | RunConfig | None,
    output: str | Path,
    config: str | Path | None,
    init_from: str | Path | None,
    resume: bool,
    device: str,
) -> RunConfig:
    """Return the configuration before the overrides are applied."""
    if isinstance(recipe, RunConfig):
        return recipe if config is None else read_config(Path(config), recipe)
    return resolve_config(recipe, output, config=config, init_from=init_from, resume=resume, device=device)


def _open_folder(run: Parts) -> None:
    if not run.processes.is_first:
        return
    remove_abandoned(run.output)
    write_text(run.output / RUN_CONFIG_FILE, yaml.safe_dump(to_dict(run.config), sort_keys=False))
    note_start(
        run.output,
        step=run.state.step,
        device=run.processes.device,
        processes=run.processes.world_size,
        data=describe_data(run.train_split, run.val_split),
    )

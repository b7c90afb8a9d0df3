"""Training, in one loop that can be read from top to bottom (paper, section 5; specification §6).

A sample is a pure function of (seed, epoch, index), the dropout of an update of (seed, update, rank), and
the learning rate of the update's number. So a run that was stopped needs only weights, optimizer moments
and two counters to go on exactly where it was.

A run folder: `config.yaml`, `checkpoints/{last,best}/`, `training_state.pt`, `metrics.jsonl`, TensorBoard's
event files, `environment.jsonl` (a line for each start) and `report.html`.
"""

from __future__ import annotations

import copy
import math
import os
import pickle
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from rich.console import Console

from .. import checkpoint as checkpoints
from ..boxes import xyxy_to_cxcywh
from ..checkpoint import Checkpoint
from ..classification import build_classification
from ..config import (
    RUN_CONFIG_FILE,
    ModelConfig,
    RunConfig,
    TrainConfig,
    override,
    read_config,
    read_yaml,
    to_dict,
    with_file,
)
from ..config import recipe as recipe_of
from ..data.formats import NOTES, list_splits, read_split
from ..data.formats.splits import name_to_measure_on
from ..data.loading import Samples, micro_batch_keys, steps_per_epoch, training_loader
from ..data.records import Split
from ..data.transforms import resized_size
from ..errors import NonFiniteError, TrainingInterruptedError, UserError
from ..evaluation import collect_detections, evaluate, match_classes
from ..files import DAMAGED_FILE_ERRORS, remove_abandoned, replacing, write_text
from ..inference.detector import Detector, choose_device, new_checkpoint
from ..loss import Losses, SetCriterion
from ..models.activation_checkpointing import checkpoint_activations
from ..report import REPORT_FILE, report_text
from ..run_folder.log import TrainingLog, note_start
from ..structures import BatchCount, FeatureBatch, ImageBatch, Target
from .feature_cache import Bounds, FeatureCache
from .optimisation import (
    adamw,
    batch_size_factor,
    cpu_copy,
    learning_rate_factor,
    parameter_groups,
    update_moving_average,
)
from .transfer import transfer

if TYPE_CHECKING:
    from accelerate import Accelerator

STATE_FILE = "training_state.pt"
FEATURES = "feature_cache"
CHECKPOINTS = "checkpoints"

MicroBatch = tuple[ImageBatch | FeatureBatch, tuple[Target, ...]]


@dataclass
class Progress:
    """How far a run is: updates done in all; after which of them an epoch was last closed (evaluated, its
    checkpoints written); the best AP so far (-1: none yet)."""

    step: int = 0
    closed_step: int = 0
    best_ap: float = -1.0


def resolve_config(
    recipe: str | None,
    output: str | Path,
    *,
    config: str | Path | None = None,
    init_from: str | Path | None = None,
    resume: bool = False,
) -> RunConfig:
    """What a run starts from, before flags: the stopped run's own configuration, or recipe < config file.

    Without a recipe, the config file may name it, or `init_from` brings its own, with the architecture and
    the preprocessing that its weights are used to.

    Raises:
        UserError: unknown recipe, unreadable file, two recipes that contradict each other, nothing to resume.
    """
    content = {} if config is None else read_yaml(Path(config))
    named = content.get("recipe", recipe)
    if recipe not in (None, named):
        raise UserError(f"{config} is for recipe {named}, not for {recipe}: name one of them only.")
    if resume:
        _require_state(Path(output))
        base = read_config(Path(output) / RUN_CONFIG_FILE, RunConfig())
        if named not in (None, base.recipe):
            raise UserError(
                f"--resume: {output} is a run of {base.recipe}, not of {named}: leave the recipe out, or "
                "choose another --output."
            )
    elif named is not None:
        base = recipe_of(named)
    elif init_from is not None:
        source = checkpoints.load(init_from)
        base = recipe_of(source.recipe)
        base = replace(
            base,
            model=replace(source.config, num_classes=base.model.num_classes),
            # the layout and the faults of the files are the new data's own
            data=replace(source.data, format=base.data.format, strict=base.data.strict),
        )
    else:
        base = recipe_of("deformable_detr_r50")
    return base if config is None else with_file(base, Path(config), content)


def _require_state(output: Path) -> None:
    if not (output / STATE_FILE).is_file():
        raise UserError(
            f"--resume: {output} holds no checkpoint to go on from; leave --resume out to start there."
        )


def train(
    data: str | Path,
    recipe: str | RunConfig | None = None,
    output: str | Path = "runs/train",
    *,
    config: str | Path | None = None,
    init_from: str | Path | None = None,
    resume: bool = False,
    device: str = "auto",
    **overrides: Any,
) -> Detector:
    """Train a detector; with several processes under torchrun, in all of them.

    Args:
        data: a folder in COCO, Pascal VOC or YOLO layout, with a split `train` and, to choose the best
            checkpoint, `val` (else `test`).
        recipe: a name in `recipes.RECIPES`, or a whole `RunConfig`.
        output: the run folder. It must not hold a run yet, except with `resume`.
        config: a YAML file with fields of `RunConfig`: recipe < config < overrides.
        init_from: a model to start from; its classes may differ.
        resume: go on with the run in `output`, exactly.
        device: `auto`, `cpu` or `cuda`; which GPU is CUDA_VISIBLE_DEVICES' and torchrun's to say.
        overrides: fields by dotted path or by name: `**{"train.epochs": 12}`, `epochs=12`, `num_queries=50`.

    Returns:
        The detector with the best weights (the last ones where nothing was evaluated).

    Raises:
        UserError: wrong input. NonFiniteError: the loss is not finite; names the update and images.
        TrainingInterruptedError: stopped by a signal, state saved.
    """
    if not isinstance(recipe, RunConfig):
        run_config = resolve_config(recipe, output, config=config, init_from=init_from, resume=resume)
    elif config is None:
        run_config = recipe
    else:
        run_config = read_config(Path(config), recipe)
    run = _Run(
        data, override(run_config, overrides), Path(output), init_from=init_from, resume=resume, device=device
    )
    return run.train()


class Rehearsal:
    """A run that keeps nothing: its own updates, to be timed (forecast.py)."""

    def __init__(self, run: _Run):
        self._run = run
        self.device = run.accelerator.device
        self.total_batch = run.total_batch
        self.updates_per_epoch = run.epoch_steps

    def updates(self) -> Iterator[float]:
        """Train; the seconds of each update, waiting for its images included. Ends with the first epoch."""
        clock = time.perf_counter()
        for micro_batches in self._run._updates(0, 0):
            self._run._update(micro_batches, False)
            self._synchronize()
            waited, clock = time.perf_counter() - clock, time.perf_counter()
            yield waited

    def largest_update(self) -> tuple[int, int]:
        """One update with a batch as large as this data can give, by pixels and by objects; its (H, W)."""
        run = self._run
        data, batch_size = run.config.data, run.config.train.batch_size
        short = data.image_size if data.augmentation == "none" else max(data.train_sizes)
        records = run.train_split.images
        sizes = [resized_size(record.size, short, data.max_size) for record in records]
        size = max(height for height, _ in sizes), max(width for _, width in sizes)
        fullest = sorted(records, key=lambda record: -int((~record.crowd).sum()))[:batch_size]
        targets = []
        for record in (fullest * batch_size)[:batch_size]:
            boxes = torch.from_numpy(record.boxes_xyxy[~record.crowd]).float()
            height, width = record.size
            cxcywh = xyxy_to_cxcywh(boxes) / torch.tensor([width, height, width, height])
            labels = torch.from_numpy(record.labels[~record.crowd])
            targets.append(Target(labels, cxcywh, record.image_id))
        images = ImageBatch.from_images([torch.zeros(3, *size)] * batch_size)
        micro_batch = (images, tuple(targets))
        run._update([micro_batch] * run.config.train.accumulate, False)
        self._synchronize()
        return size

    def evaluation_seconds(self, most_images: int) -> float:
        """What evaluating on the validation split will take, from its first images; 0 without one."""
        split = self._run.val_split
        if split is None:
            return 0.0
        detector = self._run._current_detector()
        evaluate(detector, replace(split, images=split.images[:1]), progress=False)  # makes its runner
        part = replace(split, images=split.images[:most_images])
        started = time.perf_counter()
        evaluate(detector, part, progress=False)
        return (time.perf_counter() - started) * len(split) / len(part)

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def rehearse(data: str | Path, config: RunConfig, folder: str | Path, *, device: str = "auto") -> Rehearsal:
    """Set up a run in a throw-away `folder`, as `train` does.

    Raises:
        UserError: as `train`.
    """
    return Rehearsal(_Run(data, config, Path(folder), init_from=None, resume=False, device=device))


class _Run:
    """One training run in one process: set-up, the loop, and what it leaves behind."""

    def __init__(
        self,
        data: str | Path,
        config: RunConfig,
        output: Path,
        *,
        init_from: str | Path | None,
        resume: bool,
        device: str,
    ):
        if resume:
            _require_state(output)
        elif (output / STATE_FILE).exists():
            raise UserError(
                f"{output} already holds a run: add --resume to go on with it, or choose another --output."
            )
        self.data, self.output = data, output
        self.train_split = read_split(data, "train", format=config.data.format, strict=config.data.strict)
        self.val_split = _validation_split(data, config)
        if self.val_split is not None:
            _require_common_class(self.train_split, self.val_split)
        self.config = _for_classes(config, self.train_split)
        settings = self.config.train

        self.accelerator = _accelerator(device, settings)
        self.rank, self.world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.is_main = self.accelerator.is_main_process
        self.console = Console(quiet=not self.is_main)
        self.total_batch = settings.batch_size * settings.accumulate * self.world_size
        self.epoch_steps = steps_per_epoch(len(self.train_split), self.total_batch)
        self.last_step = settings.epochs * self.epoch_steps
        if settings.max_steps is not None:
            self.last_step = min(self.last_step, settings.max_steps)

        torch.manual_seed(settings.seed)
        self.progress = Progress()
        self.initial = self._initial_checkpoint(init_from, resume)
        model = self.initial.model.to(self.accelerator.device)
        if settings.lr_backbone == 0:
            model.backbone.requires_grad_(False)
        # Depthwise and 1x1 convolutions run faster so, on CPUs and GPUs.
        model.backbone.to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(model) if settings.ema_decay > 0 else None
        self.model = model
        if settings.activation_checkpointing:
            checkpoint_activations(model)
        groups = parameter_groups(model, settings)
        self.wrapped, self.optimizer = self.accelerator.prepare(model, adamw(groups, settings))
        self.criterion = SetCriterion(build_classification(self.config.model, settings.loss), settings.loss)
        if resume:
            self._load_state()
            for group, fresh in zip(self.optimizer.param_groups, groups, strict=True):
                # The optimizer's state brings the settings of the first start; these may have been changed.
                group.update(initial_lr=fresh["initial_lr"], weight_decay=settings.weight_decay)
        self.cache = self._feature_cache() if settings.cache_features else None
        if self.is_main:
            remove_abandoned(output)
            write_text(output / RUN_CONFIG_FILE, yaml.safe_dump(to_dict(self.config), sort_keys=False))

    # ---------------------------------------------------------------- the loop

    def train(self) -> Detector:
        settings = self.config.train
        self._announce()
        self._note_start()
        with (
            TrainingLog(
                self.output,
                self.console,
                self.is_main,
                first_step=self.progress.step,
                closed_step=self.progress.closed_step,
                last_step=self.last_step,
            ) as log,
            _signals_set_a_flag() as stop,
            nullcontext() if self.cache is None else closing(self.cache),
        ):
            if self._epoch_is_open():
                self._finish_epoch((self.progress.step - 1) // self.epoch_steps, log)
            while self.progress.step < self.last_step:
                epoch, done = divmod(self.progress.step, self.epoch_steps)
                clock = time.perf_counter()
                for micro_batches in self._updates(epoch, done):
                    losses, stopped = self._update(micro_batches, stop.requested)
                    waited, clock = time.perf_counter() - clock, time.perf_counter()
                    log.update(
                        epoch=epoch,
                        step=self.progress.step,
                        losses=losses,
                        rates={group["name"]: group["lr"] for group in self.optimizer.param_groups},
                        images=self.total_batch,
                        seconds=waited,
                        every=settings.log_every,
                    )
                    if stopped:
                        self._save_state()
                        raise TrainingInterruptedError(
                            f"stopped after update {self.progress.step} of {self.last_step}; "
                            f"add --resume to go on in {self.output}"
                        )
                    if settings.checkpoint_every and self.progress.step % settings.checkpoint_every == 0:
                        self._save_state()
                    if self.progress.step == self.last_step:
                        break
                self._finish_epoch(epoch, log)
                if self.cache is not None and self.cache.num_recalled == 0:
                    self.console.print(self.cache.describe(), highlight=False, soft_wrap=True)
        if self.last_step == 0:
            self._save_checkpoint("last")
            self._save_state()
        detector = self._best_detector()
        if settings.report:
            self._report(detector)
        return detector

    def _epoch_is_open(self) -> bool:
        """Whether the run was stopped after the last update of an epoch, before it was evaluated."""
        step = self.progress.step
        at_end = step % self.epoch_steps == 0 or step == self.last_step
        return at_end and step > self.progress.closed_step

    def _updates(self, epoch: int, done: int) -> Iterator[list[MicroBatch]]:
        """The epoch's updates from number `done` on, each as this process's micro-batches."""
        settings = self.config.train
        order: Any = {
            "batch_size": settings.batch_size,
            "accumulate": settings.accumulate,
            "seed": settings.seed,
            "epoch": epoch,
            "start_step": done,
            "rank": self.rank,
            "world_size": self.world_size,
        }
        batches: Iterator[MicroBatch]
        if self.cache is None:
            batches = iter(training_loader(self.train_split, self.config.data, **order))
        else:
            batches = map(self.cache.__getitem__, micro_batch_keys(self.train_split, **order))
        while micro_batches := list(islice(batches, settings.accumulate)):
            yield micro_batches

    def _feature_cache(self) -> FeatureCache:
        settings = self.config.train
        return FeatureCache(
            Samples(self.train_split, self.config.data, settings.seed),
            self.model.backbone,
            self.accelerator.device,
            self.output / FEATURES / str(self.rank),
            Bounds(memory=int(settings.cache_memory_gb * 1e9), files=int(settings.cache_disk_gb * 1e9)),
            self.accelerator.autocast,
        )

    def _update(self, micro_batches: list[MicroBatch], stop: bool) -> tuple[dict[str, float], bool]:
        """One step of the optimizer. Returns this process's losses and whether any process is to stop."""
        settings = self.config.train
        step = self.progress.step
        torch.manual_seed(hash((settings.seed, step, self.rank)) % 2**63)  # dropout: a function of the update
        factor = learning_rate_factor(settings, step, self.epoch_steps)
        factor *= batch_size_factor(settings, self.total_batch)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

        self.wrapped.train()
        count, stopped = self._count(micro_batches, stop)
        totals: dict[str, float] = {}
        for index, (images, targets) in enumerate(micro_batches):
            is_last = index == len(micro_batches) - 1
            images = images.to(self.accelerator.device)
            targets = tuple(target.to(self.accelerator.device) for target in targets)
            # Gradients travel between processes once per update, with the last micro-batch.
            with nullcontext() if is_last else self.accelerator.no_sync(self.wrapped):
                losses = self._losses(images, targets, count)
                self.accelerator.backward(losses.total)
            terms = {"loss": losses.total.detach(), **losses.terms}
            values = torch.stack(list(terms.values())).tolist()  # a GPU is waited for once
            for name, value in zip(terms, values, strict=True):
                totals[name] = totals.get(name, 0.0) + value
        if settings.clip_norm > 0:
            norm = float(self.accelerator.clip_grad_norm_(self.model.parameters(), settings.clip_norm))
            if math.isfinite(norm):
                totals["gradient_norm"] = norm
            elif self.accelerator.scaler is None:  # fp16's scaler leaves such an update out by itself
                ids = ", ".join(str(target.image_id) for _, targets in micro_batches for target in targets)
                raise NonFiniteError(f"update {step + 1}: the gradient of images {ids} is {norm}; {_ADVICE}")
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.progress.step += 1
        if self.average is not None:
            update_moving_average(self.average, self.model, settings.ema_decay, self.progress.step)
        return totals, stopped

    def _losses(self, images: Any, targets: Any, count: BatchCount) -> Losses:
        where = f"update {self.progress.step + 1}"
        try:
            losses = self.criterion(self.wrapped(images), targets, count)
        except NonFiniteError as error:
            raise NonFiniteError(f"{where}: {error}; {_ADVICE}") from error
        if not torch.isfinite(losses.total):
            ids = ", ".join(str(target.image_id) for target in targets)
            raise NonFiniteError(f"{where}: the loss of images {ids} is {float(losses.total)}; {_ADVICE}")
        return losses

    def _count(self, micro_batches: list[MicroBatch], stop: bool) -> tuple[BatchCount, bool]:
        """What the whole update holds, over micro-batches and processes, as one process's share."""
        count = BatchCount(0.0, 0.0, 0.0)
        for _, targets in micro_batches:
            count += BatchCount.of(targets, self.config.model.num_queries)
        numbers = torch.tensor(
            [count.objects, count.matched, count.images, float(stop)], device=self.accelerator.device
        )
        objects, matched, images, stopped = self.accelerator.reduce(numbers, reduction="sum").tolist()
        return BatchCount(objects, matched, images).share_of(self.world_size), stopped > 0

    def _finish_epoch(self, epoch: int, log: TrainingLog) -> None:
        """Evaluate, keep `last` and `best`, save the state. Also where training ends within an epoch."""
        settings = self.config.train
        is_end = self.progress.step == self.last_step
        metrics: dict[str, Any] | None = None
        if self.val_split is not None and (is_end or (epoch + 1) % settings.evaluate_every == 0):
            # Who asks to stop may not wait as long as an evaluation takes: torchrun kills after 30 s.
            self._save_state()
            with log.paused():
                metrics = evaluate(self._current_detector(), self.val_split, progress=False)
        log.epoch(epoch, self.progress.step, metrics)
        self._save_checkpoint("last")
        if metrics is not None and metrics["AP"] > self.progress.best_ap:
            self.progress.best_ap = metrics["AP"]
            self._save_checkpoint("best")
        self.progress.closed_step = self.progress.step
        self._save_state()

    # ---------------------------------------------------------------- weights in and out

    def _initial_checkpoint(self, init_from: str | Path | None, resume: bool) -> Checkpoint:
        config = self.config
        # Rank 0 alone would do: DDP broadcasts its weights. But each may read a file or a cache.
        starts_elsewhere = resume or init_from is not None
        initial = new_checkpoint(
            config.model,
            self.train_split.classes,
            config.data,
            config.recipe,
            None if starts_elsewhere else config.train.backbone_weights,
        )
        if init_from is not None and not resume:
            taken = transfer(checkpoints.load(init_from), initial)
            for sentence in taken.sentences():
                self.console.print(sentence, highlight=False)
        return initial

    def _current_detector(self) -> Detector:
        """With the weights to be judged and kept: the moving average where there is one."""
        model = self.model if self.average is None else self.average
        checkpoint = replace(self.initial, model=model)
        return Detector.of(checkpoint, self.accelerator.device)

    def _save_checkpoint(self, name: str) -> None:
        if self.is_main:
            self._current_detector().save(self.output / CHECKPOINTS / name)
        self.accelerator.wait_for_everyone()

    def _best_detector(self) -> Detector:
        self.accelerator.wait_for_everyone()
        checkpoint = checkpoints.load(self.output)
        checkpoint.model.eval()
        return Detector.of(checkpoint, self.accelerator.device)

    def _note_start(self) -> None:
        """On what machine and with which versions this part of the run was trained."""
        if self.is_main:
            note_start(
                self.output,
                step=self.progress.step,
                device=self.accelerator.device,
                processes=self.world_size,
                data=data_in_words(self.train_split, self.val_split),
            )

    def _report(self, detector: Detector) -> None:
        """All processes detect, the first one writes. The run is finished and saved: whatever goes wrong from
        here on is said, but must not make it look lost."""
        path = self.output / REPORT_FILE
        self.console.print("measuring the best weights for the report", highlight=False)
        try:
            rows = (
                [] if self.val_split is None else collect_detections(detector, self.val_split, progress=False)
            )
            if self.is_main:
                text = report_text(
                    detector,
                    rows,
                    self.val_split,
                    self.train_split,
                    model=str(self.output),
                    data=str(self.data),
                )
                write_text(path, text)
                self.console.print(f"report: {path}", highlight=False, soft_wrap=True)
        except Exception as error:
            why = " ".join(f"{type(error).__name__}: {error}".split())
            self.console.print(
                f"The run is finished and saved, but its report could not be made ({why}); try again with "
                f"`deformable-detr report {self.output} {self.data}`.",
                style="red",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )

    def _save_state(self) -> None:
        if self.is_main:
            state = {
                **asdict(self.progress),
                "total_batch": self.total_batch,
                "data": self._data_description(),
                "model": cpu_copy(self.model.state_dict()),
                "average": None if self.average is None else cpu_copy(self.average.state_dict()),
                "optimizer": self.optimizer.state_dict(),
                "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
            }
            with replacing(self.output / STATE_FILE) as draft:
                torch.save(state, draft)
        self.accelerator.wait_for_everyone()

    def _data_description(self) -> dict[str, Any]:
        """What must be the same for a run to go on: an update's images are found by their numbers."""
        return {"images": len(self.train_split), "classes": list(self.train_split.classes.names)}

    def _load_state(self) -> None:
        path = self.output / STATE_FILE
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, *DAMAGED_FILE_ERRORS) as error:
            why = " ".join(str(error).split())
            raise UserError(f"--resume: {path} cannot be read ({why}); start a new run.") from error
        if state["data"] != self._data_description():
            raise UserError(
                f"--resume: the data differ from those of the run ({state['data']['images']} training images "
                f"of {len(state['data']['classes'])} classes, now {len(self.train_split)} of "
                f"{len(self.train_split.classes)}): start a new run with --init-from {self.output}."
            )
        if state["total_batch"] != self.total_batch:
            raise UserError(
                f"--resume: the run was made with {state['total_batch']} images per update, now there are "
                f"{self.total_batch}: keep batch_size x accumulate x processes the same."
            )
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.average is not None:
                self.average.load_state_dict(state["average"] or state["model"])
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"--resume: the model differs from the one in {path} ({_last_line(error)}): "
                "resume with the same model settings."
            ) from error
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**{item.name: state[item.name] for item in fields(Progress)})

    # ---------------------------------------------------------------- words

    def _announce(self) -> None:
        settings, split = self.config.train, self.train_split
        factor = batch_size_factor(settings, self.total_batch)
        boxes = sum(len(record) for record in split.images)
        trainable = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        lines = [
            f"{self.config.recipe}: {trainable:,} trainable parameters on {self.accelerator.device}",
            f"{split.format} data: {len(split)} training images, {boxes} boxes, "
            f"{len(split.classes)} classes; "
            + (
                "no validation split"
                if self.val_split is None
                else f"{len(self.val_split)} images to evaluate on ({self.val_split.name})"
            ),
            f"{self.last_step} updates of {settings.batch_size} x {settings.accumulate} x {self.world_size} "
            f"images (batch x accumulate x processes), {self.epoch_steps} an epoch",
            f"learning rate {settings.lr * factor:.2e} (backbone {settings.lr_backbone * factor:.2e}): "
            f"rule '{settings.lr_rule}', {settings.lr:.2e} is for {settings.lr_batch_size} images an update",
        ]
        problems = [problem for problem in split.problems if problem.kind not in NOTES]
        if problems:
            lines.append(
                f"problems in the data: {len(problems)}; broken boxes and pictures that are missing are left "
                "out, `deformable-detr inspect` lists them"
            )
        if boxes == 0:
            lines.append("no object in the training images: nothing can be learned from them")
        if self.progress.step:
            lines.append(f"resuming after update {self.progress.step}")
        for line in lines:
            self.console.print(line, highlight=False, soft_wrap=True)


_ADVICE = "lower the learning rate (--train.lr), or look at the images with `deformable-detr inspect`"


def _last_line(error: Exception) -> str:
    """Of PyTorch's many lines on what does not fit: the last one, an example."""
    return str(error).strip().splitlines()[-1].strip().rstrip(".")


def _accelerator(device: str, settings: TrainConfig) -> Accelerator:
    """Accelerate's view of this process, its device and precision.

    Raises:
        UserError: a device that is not here, a precision that it cannot compute in.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedDataParallelKwargs

    if device not in ("auto", "cpu", "cuda"):
        raise UserError(
            f"training runs on auto, cpu or cuda, not on {device}: choose the GPU with CUDA_VISIBLE_DEVICES."
        )
    on_cpu = choose_device(device).type == "cpu"
    if on_cpu and settings.precision == "fp16":
        raise UserError("train.precision: fp16 needs a GPU: use bf16 or fp32 on a CPU.")
    # A process may train more than once, each time in another precision, but this state is kept for good;
    # only the process group below it must stay.
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    AcceleratorState._reset_state(reset_partial_state=alone)
    return Accelerator(
        cpu=on_cpu,
        mixed_precision="no" if settings.precision == "fp32" else settings.precision,
        kwargs_handlers=[
            # Without auxiliary losses the earlier layers' heads get no gradient.
            DistributedDataParallelKwargs(find_unused_parameters=not settings.loss.auxiliary)
        ],
    )


def _for_classes(config: RunConfig, split: Split) -> RunConfig:
    """The configuration for the data set's classes, whose number is the data's to say."""
    asked, found = config.model.num_classes, len(split.classes)
    if asked not in (ModelConfig.num_classes, found):
        raise UserError(
            f"model.num_classes is {asked}, but {split.source} has {found} classes: leave the option out, "
            "the number comes from the data."
        )
    return replace(config, model=replace(config.model, num_classes=found))


def _require_common_class(train: Split, val: Split) -> None:
    """Before hours of training, not at the first evaluation."""
    try:
        match_classes(train.classes, val.classes, val.source)
    except UserError as error:
        raise UserError(
            f"{train.source} and {val.source} have no class in common: give both splits the same class names."
        ) from error


def data_in_words(train: Split, val: Split | None) -> dict[str, Any]:
    """By which a run's data are known again, wherever they lie; ready for JSON."""
    return {
        "train_images": len(train),
        "val_images": None if val is None else len(val),
        "classes": list(train.classes.names),
    }


def _validation_split(data: str | Path, config: RunConfig) -> Split | None:
    name = name_to_measure_on(list_splits(data, format=config.data.format))
    if name is None:
        return None
    return read_split(data, name, format=config.data.format, strict=config.data.strict)


@dataclass
class _Stop:
    requested: bool = False


@contextmanager
def _signals_set_a_flag() -> Iterator[_Stop]:
    """Ctrl-C and SIGTERM end training after the current update; a second Ctrl-C at once."""
    stop = _Stop()

    def ask(number: int, frame: Any) -> None:
        if stop.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.requested = True

    try:
        previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread, where Python allows no handlers
        previous = {}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

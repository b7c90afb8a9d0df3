"""`python -m experiments.benchmark train`: one update of training, against transformers.

Every rival runs in a separate process, as its users run it: ours makes the allocator keep large buffers
(allocator.py), and transformers uses PyTorch's defaults. They take turns, with the same weights, images and
objects. Losses on every layer, gradient clipping and AdamW are included; decoding of images is not. The same
processes also measure peak memory, and show how much the losses of the fast and the plain form differ.
"""

from __future__ import annotations

import tempfile
from argparse import Namespace
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from deformable_detr.checkpoint import Checkpoint, class_table_for, transformers_format
from deformable_detr.checkpoint.families import family_of
from deformable_detr.classification import build_classification
from deformable_detr.cli.options import Parser
from deformable_detr.config import RunConfig
from deformable_detr.config import recipe as recipe_of
from deformable_detr.errors import UserError
from deformable_detr.inference.devices import cpu_has_bfloat16
from deformable_detr.loss import SetCriterion
from deformable_detr.models import build_model
from deformable_detr.models.activation_checkpointing import checkpoint_activations
from deformable_detr.structures import ImageBatch, Target
from deformable_detr.system.allocator import keep_large_buffers
from deformable_detr.system.memory import peak_bytes
from deformable_detr.training.optimisation import adamw, parameter_groups

from .measure import (
    Timing,
    alternate,
    chosen_peers,
    machine,
    write_report,
)
from .rivals import (
    add_shared_arguments,
    environment_of_our_commands,
    parsed_size,
    process_of_each,
)
from .tables import Goal, print_goals, print_participants, table

TRANSFORMERS = "transformers"
PEERS = {TRANSFORMERS: "transformers"}
OURS, PLAIN, CHECKPOINTED, BF16 = "ours", "ours, plain", "ours, checkpointed", "ours, bf16"
CURVE_UPDATES = 3  # two updates of the warm-up, and at least one turn
OBJECTS_PER_IMAGE = 7

Step = Callable[[], float]  # one update; returns its loss


@dataclass(frozen=True)
class Work:
    """The task of every rival: updates of `recipe`'s model on `batch` images of `size` (height, width)."""

    recipe: str
    size: tuple[int, int]
    batch: int
    threads: int
    seed: int = 0

    @property
    def config(self) -> RunConfig:
        return recipe_of(self.recipe)


def add_arguments(parser: Parser) -> None:
    add_shared_arguments(parser, "480x640", PEERS)
    parser.option("--batch", int, 2, "Images per update.")


def run(arguments: Namespace) -> None:
    benchmark_train(**vars(arguments), console=Console())


def benchmark_train(
    *,
    recipe: str,
    size: str,
    batch: int,
    against: str | None,
    threads: int | None,
    repeats: int,
    output: str | None,
    console: Console,
) -> dict[str, Any]:
    """Measure, print tables to `console`, write `output` if given, and return what was written.

    Raises:
        UserError: if a recipe or peer is unknown, or a number is out of range.
    """
    if min(repeats, batch) < 1 or (threads is not None and threads < 1):
        raise UserError("--repeats, --batch and --threads must be at least 1.")
    work = Work(recipe, parsed_size(size), batch, threads or torch.get_num_threads())
    work.config  # noqa: B018 an unknown recipe is refused here
    peers, missing = chosen_peers(against, PEERS)
    if TRANSFORMERS in peers:
        try:
            family_of(work.config.model, transformers_format.PROJECT)
        except UserError as error:
            missing[TRANSFORMERS] = str(error)
            del peers[TRANSFORMERS]
    rivals = [*peers, PLAIN, OURS, CHECKPOINTED, *([BF16] if cpu_has_bfloat16() else [])]
    facts = machine()
    print_participants(console, facts, peers, missing)
    if BF16 not in rivals:
        console.print("bf16: not measured, this CPU has no bfloat16 instructions")

    measured = _measured(work, rivals, repeats)
    timings = {name: each.timing for name, each in measured.items()}
    memory = {name: each.peak_bytes for name, each in measured.items()}
    curves = {name: measured[name].losses[:CURVE_UPDATES] for name in (PLAIN, OURS)}
    targets = targets_of(timings, memory)
    _print(work, timings, memory, curves, targets, console)
    report = {
        "benchmark": "train",
        "machine": facts,
        "settings": {**asdict(work), "repeats": repeats},
        "peers": peers,
        "missing_peers": missing,
        "timings": {name: timing.to_dict() for name, timing in timings.items()},
        "peak_bytes": memory,
        "loss_curves": curves,
        "loss_curve_difference": curve_difference(curves),
        "targets": [asdict(target) | {"verdict": target.verdict} for target in targets],
    }
    if output is not None:
        write_report(output, report)
        console.print(f"written: {output}")
    return report


# ---- Rivals --------------------------------------------------------------------------------------


def _checkpoint(work: Work) -> Checkpoint:
    torch.manual_seed(work.seed)
    config = work.config
    classes = class_table_for(config.model.num_classes)
    return Checkpoint(build_model(config.model), config.model, classes, config.data, work.recipe)


def _images(work: Work) -> tuple[ImageBatch, tuple[Target, ...]]:
    generator = torch.Generator().manual_seed(work.seed)
    pixels = [torch.randn(3, *work.size, generator=generator) for _ in range(work.batch)]
    targets = []
    for number in range(work.batch):
        centres = torch.rand(OBJECTS_PER_IMAGE, 2, generator=generator) * 0.6 + 0.2
        sizes = torch.rand(OBJECTS_PER_IMAGE, 2, generator=generator) * 0.3 + 0.05
        labels = torch.randint(0, work.config.model.num_classes, (OBJECTS_PER_IMAGE,), generator=generator)
        targets.append(Target(labels, torch.cat([centres, sizes], dim=1), number))
    return ImageBatch.from_images(pixels), tuple(targets)


def step_of(name: str, work: Work) -> Step:
    """Set up a rival in this process, and return its update."""
    torch.set_num_threads(work.threads)
    torch.manual_seed(work.seed)
    if name == TRANSFORMERS:
        return _transformers_step(work)
    if name != PLAIN:
        keep_large_buffers()
    return _our_step(work, name)


def _our_step(work: Work, name: str) -> Step:
    """Set up our training, and return its update.

    `PLAIN` means PyTorch's defaults for memory layout, allocator and optimizer.
    """
    config, model = work.config, _checkpoint(work).model
    settings = config.train
    images, targets = _images(work)
    criterion = SetCriterion(build_classification(config.model, settings.loss), settings.loss)
    groups = parameter_groups(model, settings)
    if name == PLAIN:
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
    else:
        model.backbone.to(memory_format=torch.channels_last)
        optimizer = adamw(groups, settings)
    if name == CHECKPOINTED:
        checkpoint_activations(model)
    model.train()

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16) if name == BF16 else nullcontext():
            output = model(images)
        losses = criterion(output, targets)
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        return float(losses.total.detach())

    return step


def _transformers_step(work: Work) -> Step:
    """Set up transformers' model with the same weights, its own losses, and the optimizer that its users
    would create; return its update."""
    import transformers
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        transformers_format.save(path, _checkpoint(work))
        model = transformers.AutoModelForObjectDetection.from_pretrained(path)
    settings = work.config.train
    model.config.auxiliary_loss = True
    model.train()
    images, targets = _images(work)
    labels = [{"class_labels": target.labels, "boxes": target.boxes_cxcywh} for target in targets]
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=settings.lr, weight_decay=settings.weight_decay)

    def step() -> float:
        loss = model(pixel_values=images.pixels, pixel_mask=(~images.mask).long(), labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, settings.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


# ---- Measuring -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """Measurements of one rival: the `losses` of all updates, and the process's peak resident memory."""

    timing: Timing
    losses: list[float]
    peak_bytes: int


def _environment_of(rival: str) -> dict[str, str]:
    return {} if rival in (TRANSFORMERS, PLAIN) else environment_of_our_commands(busy=True)


def _measured(work: Work, rivals: list[str], repeats: int) -> dict[str, Measured]:
    with process_of_each(rivals, partial(_set_up, work), _environment_of) as processes:
        losses: dict[str, list[float]] = {name: [] for name in rivals}

        def update(name: str) -> None:
            losses[name].append(processes[name].submit(_update_here).result())

        calls = {name: partial(update, name) for name in rivals}
        timings = alternate(calls, repeats=repeats, warmup=2, turn_seconds=0.0)
        peaks = {name: process.submit(peak_bytes).result() for name, process in processes.items()}
    return {name: Measured(timings[name], losses[name], peaks[name]) for name in rivals}


_here: dict[str, Step] = {}  # the update of this process's rival


def _set_up(work: Work, name: str) -> None:
    _here["step"] = step_of(name, work)


def _update_here() -> float:
    return _here["step"]()


def curve_difference(curves: Mapping[str, list[float]]) -> float:
    """Return the largest relative difference between the losses of the plain and of the fast form."""
    pairs = zip(curves[OURS], curves[PLAIN], strict=True)
    return max(abs(ours - plain) / abs(plain) for ours, plain in pairs)


# ---- Targets and tables --------------------------------------------------------------------------


def targets_of(timings: Mapping[str, Timing], memory: Mapping[str, int]) -> list[Goal]:
    """Return the project's targets with the measured numbers, all ratios to transformers in fp32."""

    def times_faster(name: str) -> float | None:
        if TRANSFORMERS not in timings or name not in timings:
            return None
        return timings[TRANSFORMERS].median / timings[name].median

    def share(name: str) -> float | None:
        return memory[name] / memory[TRANSFORMERS] if TRANSFORMERS in memory else None

    return [
        Goal("fp32, times as fast", 2.2, 2.7, times_faster(OURS), at_least=True),
        Goal("bf16, times as fast", 3.5, 4.5, times_faster(BF16), at_least=True),
        Goal("peak memory, share", 0.5, 0.35, share(OURS), at_least=False),
        Goal("peak memory, checkpointed", 0.5, 0.35, share(CHECKPOINTED), at_least=False),
    ]


def _print(
    work: Work,
    timings: Mapping[str, Timing],
    memory: Mapping[str, int],
    curves: Mapping[str, list[float]],
    targets: list[Goal],
    console: Console,
) -> None:
    height, width = work.size
    rows = table(
        f"\n{work.recipe}: an update of {work.batch} images of {height}x{width}, {work.threads} threads",
        "",
        "seconds",
        "images/s",
        "peak, GB",
    )
    for name, timing in timings.items():
        rows.add_row(
            name,
            f"{timing.median:.2f} ±{timing.spread:.2f}",
            f"{work.batch / timing.median:.2f}",
            f"{memory[name] / 1e9:.2f}",
        )
    console.print(rows)
    first, last = curves[OURS][0], curves[OURS][-1]
    console.print(
        f"\nlosses of {CURVE_UPDATES} updates, {first:.3f} to {last:.3f}: "
        f"ours and plain differ by {curve_difference(curves):.1e}",
        highlight=False,
    )
    print_goals(console, "targets, against transformers in fp32", targets)

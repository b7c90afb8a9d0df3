"""How attention finds its keys over the epochs (paper, section 3): small models are trained, and examined
before the first update and after each epoch.

    python -m experiments.paper attention [DATA] --epochs 6 --output runs/paper [--rows detr_r50_dc5 …]

The paper's argument: dense attention starts with weights near 1/N for N keys, so that the features of all
keys get nearly the same gradient, and must learn to concentrate; deformable attention has few keys from the
start. Two quantities are measured on pictures of the val split, in evaluation mode:

*Attention*, for each layer: the entropy of a query's weights, the number of keys that this amounts to (its
exponential), and the largest weight. *Gradient* of the set loss with respect to the decoder's keys, which are
the memory's tokens: its norm per token, and its focus, which is the mean over tokens inside the boxes of
objects, divided by the mean over the other tokens.

Letters: B pictures, N keys, R rows (queries, or tokens of the encoder), M heads, S tokens, n boxes.
"""

from __future__ import annotations

import json
import math
import shlex
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

import torch
from rich.console import Console
from torch import Tensor

from deformable_detr.classification import build_classification
from deformable_detr.cli.options import Parser, add_device
from deformable_detr.config import RunConfig, override
from deformable_detr.data.drawn import generate
from deformable_detr.data.formats import read_split
from deformable_detr.data.loading import Samples, steps_per_epoch
from deformable_detr.errors import UserError
from deformable_detr.files import write_json
from deformable_detr.inference.detector import Detector
from deformable_detr.inference.loading import load
from deformable_detr.inference.recording import DenseLayer, LayerRecord, record
from deformable_detr.loss import SetCriterion
from deformable_detr.models.encoder import token_centres
from deformable_detr.run_folder.names import CHECKPOINTS, LAST, METRICS_FILE
from deformable_detr.run_folder.reading import read_metrics
from deformable_detr.structures import DetectorOutput, FeatureMemory, ImageBatch, Target
from deformable_detr.system.environment import environment
from experiments.commands import add_output

from .pictures import COLOURS, new_figure, save_figure
from .queue import ROWS
from .rows import RecipeRow, read_run, require_data, run_folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DEFAULT_ROWS = ("detr_r50_dc5", "deformable_detr_r50")
DRAWN_DATA = {"train": 160, "val": 32, "image_size": (320, 427), "seed": 0}
PICTURES = 16
SIDE = 4  # examined positions of the encoder per side of a picture
Stage = Literal["encoder", "decoder"]


@dataclass(frozen=True)
class Attention:
    """Statistics of one layer (counted from 1), as means over pictures, rows and heads. `keys` is the number
    N of keys that a head weighs for a query, out of `tokens` in total. `entropy` is a fraction of ln N, and
    `effective_keys` is the exponential of the entropy."""

    stage: Stage
    layer: int
    keys: int
    tokens: int
    entropy: float
    effective_keys: float
    largest_weight: float


@dataclass(frozen=True)
class Gradient:
    """The gradient of a picture's set loss with respect to the decoder's memory, as means over pictures.
    `per_key` is the norm per token. `focus` is the mean norm of tokens inside the objects' boxes, divided by
    that of the tokens outside; it is 1 if both are equal, or if all tokens are inside or all outside."""

    per_key: float
    focus: float


@dataclass(frozen=True)
class Moment:
    """Measurements of a model after `epoch` epochs (0: as initialised). `AP` is a fraction, None before
    training."""

    row: str
    epoch: int
    updates: int
    AP: float | None
    attention: tuple[Attention, ...]
    gradient: Gradient


def add_arguments(parser: Parser) -> None:
    parser.argument("dataset", "DATA", "A data set. Default: drawn shapes.", optional=True)
    add_output(parser, "run folders, JSON and the figure")
    parser.option(
        "--rows", str, list(DEFAULT_ROWS), "Rows of tables 1 and 2 to follow.", shown="ROW", many=True
    )
    parser.option("--epochs", int, 6, "Passes over the training images.")
    parser.option("--pictures", int, PICTURES, "Images of the val split to measure on.")
    parser.option("--seed", int, 1, "The seed of the trainings.")
    add_device(parser)


def run(arguments: Namespace) -> None:
    output, console = Path(arguments.output), Console()
    if arguments.epochs < 1 or arguments.pictures < 1:
        raise UserError("--epochs and --pictures must be at least 1.")
    # Rows whose models have attention
    known = [name for name, row in ROWS.items() if isinstance(row, RecipeRow)]
    unknown = [name for name in arguments.rows if name not in known]
    if unknown:
        raise UserError(f"--rows: there is no row {unknown[0]}: choose among {', '.join(known)}.")
    data = _drawn(output) if arguments.dataset is None else Path(arguments.dataset)
    command = ["python", "-m", "experiments.paper", "attention"]
    command += [] if arguments.dataset is None else [arguments.dataset]
    command += ["--output", arguments.output, "--rows", *arguments.rows, "--epochs", str(arguments.epochs)]
    command += ["--pictures", str(arguments.pictures), "--seed", str(arguments.seed)]
    moments: dict[str, list[Moment]] = {}
    for name in arguments.rows:
        moments[name] = follow(
            name,
            data,
            output,
            epochs=arguments.epochs,
            seed=arguments.seed,
            pictures=arguments.pictures,
            device=arguments.device,
            console=console,
        )
    content = {
        "command": shlex.join(command),
        "environment": environment("cpu"),
        "data": str(data),
        "pictures": arguments.pictures,
        "seed": arguments.seed,
        "moments": [asdict(each) for found in moments.values() for each in found],
    }
    write_json(output / "attention.json", content)
    print("written: {}, {}".format(*save_figure(draw(moments), output / "attention")))


def _drawn(output: Path) -> Path:
    folder = output / "data" / "attention"
    return folder if folder.exists() else generate(folder, **DRAWN_DATA)  # type: ignore[arg-type]


def follow(
    name: str,
    data: Path,
    output: Path,
    *,
    epochs: int,
    seed: int,
    pictures: int,
    device: str,
    console: Console,
) -> list[Moment]:
    """Train a row and measure it before the first epoch and after each one. The run folder keeps each epoch's
    model and measurements, so a stopped run can continue, and other pictures need no further training.

    Raises:
        UserError: if the folder has a run on other data, or a run past an epoch whose model is missing.
    """
    row = ROWS[name]
    config = row.config("small", epochs, seed)
    folder = run_folder(output, "small", f"attention-{name}", epochs, seed)
    train_split = read_split(data, "train", format=config.data.format)
    steps = steps_per_epoch(len(train_split), config.train.batch_size * config.train.accumulate)
    before = read_run(folder)
    if before is not None:
        require_data(before, read_split(data, "val", format=config.data.format))
    moments = []
    for epoch in range(epochs + 1):
        model, file = folder / "attention" / str(epoch), folder / "attention" / f"{epoch}-{pictures}.json"
        if not model.is_dir():
            if _updates_done(folder) > epoch * steps:
                raise UserError(
                    f"{folder} is past epoch {epoch}, whose model is not in {model}: remove the folder."
                )
            # The run is stopped at the epoch's end, as by a signal, so that its schedule is that of all
            # epochs.
            row.train(data, override(config, {"train.max_steps": epoch * steps}), folder, device)
            load(folder / CHECKPOINTS / LAST, device).save(model)
        if not file.is_file():
            moment = measure(load(model, device), config, data, pictures)
            content = {"row": name, "epoch": epoch, "updates": epoch * steps, "AP": _ap(folder, epoch)}
            write_json(file, {**content, **moment})
        moments.append(_moment(json.loads(file.read_text(encoding="utf-8"))))
        last = moments[-1]
        entropy = fmean(each.entropy for each in last.attention)
        console.print(
            f"{name}, epoch {epoch}: entropy {entropy:.3f}, focus {last.gradient.focus:.2f}", highlight=False
        )
    return moments


def _moment(content: Mapping[str, Any]) -> Moment:
    attention = tuple(Attention(**each) for each in content["attention"])
    return Moment(**{**content, "attention": attention, "gradient": Gradient(**content["gradient"])})


def _updates_done(folder: Path) -> int:
    path = folder / METRICS_FILE
    return max((row["step"] for row in read_metrics(path)), default=0) if path.is_file() else 0


def _ap(folder: Path, epochs: int) -> float | None:
    """Return the AP of the evaluation after `epochs` epochs, a fraction; None if there was no evaluation."""
    rows = read_metrics(folder / METRICS_FILE)
    return next(
        (row["AP"] for row in rows if row["kind"] == "evaluation" and row["epoch"] == epochs - 1), None
    )


# ---- Measuring -------------------------------------------------------------------------------------


def measure(detector: Detector, config: RunConfig, data: Path, pictures: int) -> dict[str, Any]:
    """Return `attention` and `gradient` of a `Moment` as JSON values.

    Raises:
        UserError: if none of the pictures has an object.
    """
    split = read_split(data, "val", format=config.data.format)
    samples = Samples(split, replace(config.data, augmentation="none"), seed=0)
    criterion = SetCriterion(build_classification(detector.config, config.train.loss), config.train.loss)
    found, gradients = [], []
    for index in range(min(pictures, len(samples))):
        pixels, target = samples[0, index]
        batch = ImageBatch.from_images([pixels]).to(next(detector.model.parameters()).device)
        found.append(attention_of(detector, batch))
        if len(target):
            gradients.append(gradient_of(detector, criterion, batch, target))
    if not gradients:
        raise UserError(f"{split.source}: no object in the first {pictures} pictures of val: name more.")
    return {
        "attention": [asdict(_mean_attention(layers)) for layers in zip(*found, strict=True)],
        "gradient": {name: fmean(getattr(each, name) for each in gradients) for name in ("per_key", "focus")},
    }


def attention_of(detector: Detector, batch: ImageBatch) -> list[Attention]:
    """Return the statistics of each layer for one picture, the encoder's layers first.

    The encoder's rows are the tokens at SIDE x SIDE places of the picture.
    """
    ticks = (torch.arange(SIDE) + 0.5) / SIDE
    places = torch.cartesian_prod(ticks, ticks)
    recording = record(detector.model, batch, places)
    tokens = recording.memory.tokens.shape[1]
    stages: tuple[tuple[Stage, Sequence[LayerRecord]], ...] = (
        ("encoder", recording.encoder),
        ("decoder", recording.decoder),
    )
    return [
        _attention(stage, number, weights_of(layer), tokens)
        for stage, layers in stages
        for number, layer in enumerate(layers, start=1)
    ]


def weights_of(layer: LayerRecord) -> Tensor:
    """Return the layer's weights, (B·R·M, N); each row sums to one."""
    weights = layer.weights if isinstance(layer, DenseLayer) else layer.weights.flatten(-2)
    return weights.flatten(0, -2)


def _attention(stage: Stage, number: int, weights: Tensor, tokens: int) -> Attention:
    entropy = -(weights * weights.clamp(min=1e-30).log()).sum(-1)
    keys = weights.shape[-1]
    return Attention(
        stage,
        number,
        keys,
        tokens,
        float(entropy.mean()) / math.log(keys) if keys > 1 else 0.0,
        float(entropy.exp().mean()),
        float(weights.amax(-1).mean()),
    )


def _mean_attention(layers: Sequence[Attention]) -> Attention:
    """Average one layer's statistics over pictures."""
    return replace(
        layers[0],
        keys=round(fmean(each.keys for each in layers)),
        tokens=round(fmean(each.tokens for each in layers)),
        entropy=fmean(each.entropy for each in layers),
        effective_keys=fmean(each.effective_keys for each in layers),
        largest_weight=fmean(each.largest_weight for each in layers),
    )


def gradient_of(detector: Detector, criterion: SetCriterion, batch: ImageBatch, target: Target) -> Gradient:
    """Return the gradient of one picture's loss with respect to the memory that the decoder reads."""
    model = detector.model.eval()
    with torch.no_grad():
        memory: FeatureMemory = model.encoder(model.embed(batch))
    tokens = memory.tokens.clone().requires_grad_()
    memory = replace(memory, tokens=tokens)
    with torch.enable_grad():
        queries = model.queries(memory)
        output = DetectorOutput(model.decoder(queries, memory), queries.proposals)
        loss = criterion(output, [target.to(tokens.device)]).total
    (gradient,) = torch.autograd.grad(loss, tokens)
    norms = gradient[0].norm(dim=-1)
    inside = tokens_inside(memory, target.boxes_cxcywh.to(tokens.device))
    focus = float(norms[inside].mean() / norms[~inside].mean()) if 0 < inside.sum() < len(inside) else 1.0
    return Gradient(per_key=float(norms.mean()), focus=focus)


def tokens_inside(memory: FeatureMemory, boxes_cxcywh: Tensor) -> Tensor:
    """Return a mask, (S,) bool, of the tokens whose centre is inside one of the boxes (n, 4)."""
    centres = token_centres(memory)[0]  # (S, 2), fractions of the picture
    distance = (centres[:, None] - boxes_cxcywh[None, :, :2]).abs()
    inside: Tensor = (distance <= boxes_cxcywh[None, :, 2:] / 2).all(-1).any(-1)
    return inside


# ---- Picture ---------------------------------------------------------------------------------------


def draw(moments: Mapping[str, Sequence[Moment]]) -> Figure:
    """Plot entropy, effective keys (encoder solid, decoder dashed), the gradient's focus and AP by epoch."""
    figure = new_figure(columns=4)
    entropy, keys, focus, precision = figure.axes
    for colour, (name, found) in zip(COLOURS, moments.items(), strict=False):
        label, epochs = ROWS[name].label, [each.epoch for each in found]
        for stage, style in (("encoder", "-"), ("decoder", "--")):
            for axes, quantity in ((entropy, "entropy"), (keys, "effective_keys")):
                values = [
                    fmean(getattr(layer, quantity) for layer in each.attention if layer.stage == stage)
                    for each in found
                ]
                _curve(axes, epochs, values, f"o{style}", colour, f"{label}, {stage}")
        _curve(focus, epochs, [each.gradient.focus for each in found], "o-", colour, label)
        known = [(each.epoch, 100 * each.AP) for each in found if each.AP is not None]
        _curve(precision, [e for e, _ in known], [ap for _, ap in known], "o-", colour, label)
        tokens = found[0].attention[0].tokens
        keys.axhline(tokens, color=colour, linewidth=0.8, linestyle=":")
    keys.set_yscale("log")
    keys.set_yticks([10, 30, 100, 300, 1000], ["10", "30", "100", "300", "1000"])
    keys.set_yticks([], minor=True)
    for axes, label in (
        (entropy, "entropy / ln N"),
        (keys, "keys in use (dotted: tokens)"),
        (focus, "gradient: objects / background"),
        (precision, "AP (%)"),
    ):
        axes.set_xlabel("epoch", fontsize=9)
        axes.set_ylabel(label, fontsize=8)
    lines, labels = entropy.get_legend_handles_labels()
    figure.legend(lines, labels, fontsize=7, frameon=False, loc="outside lower center", ncols=4)
    return figure


def _curve(axes: Axes, x: Sequence[int], y: Sequence[float], style: str, colour: str, label: str) -> None:
    axes.plot(x, y, style, color=colour, markersize=2.5, linewidth=1.2, label=label)

"""The command `deformable-detr demo`, which tries all steps on a drawn data set, offline in a few minutes."""

from __future__ import annotations

import json
import time
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import RunConfig
from ..config.recipes import deformable_detr_lite
from ..errors import TrainingInterruptedError, UserError
from ..words import metric
from .options import Parser

if TYPE_CHECKING:
    from ..prediction import PredictionReport

SUMMARY = "draw data, train, evaluate and predict offline, in a few minutes"
IMAGE_SIZE = (120, 160)
TRAIN_IMAGES, VAL_IMAGES, SHOWN_IMAGES = 400, 60, 12
EPOCHS = 7


def add_arguments(parser: Parser) -> None:
    parser.description = (
        "Draw a data set, train on it, evaluate and predict, offline, in a few minutes on two cores."
    )
    parser.option(
        "--output", str, "demo_output", "The folder to write to; it must be empty or new.", shown="FOLDER"
    )
    parser.option("--seed", int, 0, "The seed of the drawn data and of the training.")
    parser.option(
        "--epochs", int | None, None, f"Passes over the data; fewer give a quick look. Default: {EPOCHS}."
    )


def run(arguments: Namespace) -> int:
    demo(**vars(arguments))
    return 0


def demo_config() -> RunConfig:
    """Return the lite recipe for small pictures and few epochs: training takes minutes instead of an hour."""
    base = deformable_detr_lite()
    return replace(
        base,
        data=replace(base.data, image_size=128, max_size=200, train_sizes=(96, 128, 128)),
        train=replace(
            base.train,
            epochs=EPOCHS,
            evaluate_every=EPOCHS,
            batching="padded",  # for small pictures, this is faster even on a CPU
            warmup_steps=50,
            log_every=50,
        ),
    )


def demo(output: str | Path = "demo_output", *, seed: int = 0, epochs: int | None = None) -> None:
    """Draw a data set, train, evaluate and predict, and print what was written.

    The files in `output` are `data/` (COCO layout), `run/` (checkpoints, metrics.jsonl, report.html),
    `metrics.json` and `predictions/` (annotated pictures, predictions.json).

    Args:
        output: a folder that is new or empty.
        seed: the seed of the drawn data and of training.
        epochs: the number of passes over the data; None means those of `demo_config`.

    Raises:
        UserError: if `output` is a file, is not empty or cannot be written, or an argument is out of range.
        TrainingInterruptedError: if training was stopped by a signal.
    """
    from rich.console import Console

    from ..data.drawn import generate
    from ..evaluation import evaluate, print_metrics
    from ..files import make_output_folder
    from ..prediction import predict
    from ..training import train

    folder, console, started = Path(output), Console(), time.perf_counter()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--output {folder} is not empty: remove it, or name another folder.")
    config = demo_config()
    if epochs is None:
        epochs = config.train.epochs
    config = replace(config, train=replace(config.train, seed=seed, epochs=epochs))
    make_output_folder(folder)

    console.print(f"1/4  drawing {TRAIN_IMAGES + VAL_IMAGES} pictures", highlight=False)
    data = generate(folder / "data", train=TRAIN_IMAGES, val=VAL_IMAGES, image_size=IMAGE_SIZE, seed=seed)
    console.print("2/4  training", highlight=False)
    try:
        detector = train(data, config, folder / "run")
    except TrainingInterruptedError as error:
        raise TrainingInterruptedError(
            f"stopped. Remove {folder} to start the demo again, or finish its training by "
            f"`deformable-detr train {data} --output {folder / 'run'} --resume`."
        ) from error
    console.print("3/4  evaluating", highlight=False)
    metrics = evaluate(detector, data, output=folder / "metrics.json")
    print_metrics(metrics, console)
    console.print("4/4  predicting", highlight=False)
    names = [image["file_name"] for image in _val_images(data)[:SHOWN_IMAGES]]
    prediction = predict(detector, [data / "val" / name for name in names], folder / "predictions")
    minutes = (time.perf_counter() - started) / 60
    console.print(_summary(folder, minutes, metrics, prediction), highlight=False, soft_wrap=True)


def _summary(folder: Path, minutes: float, metrics: dict[str, Any], prediction: PredictionReport) -> str:
    from ..run_folder.names import REPORT_PAGE

    return (
        f"done in {minutes:.1f} minutes. Look at\n"
        f"  {folder / 'predictions'}   {len(prediction.pictures)} annotated pictures\n"
        f"  {prediction.predictions}   {prediction.detections} detections\n"
        f"  {folder / 'metrics.json'}   AP {metric(metrics['AP'])}, AP50 {metric(metrics['AP50'])}\n"
        f"  {folder / 'run'}   checkpoints, metrics.jsonl, TensorBoard\n"
        f"  {folder / 'run' / REPORT_PAGE}   how good it is, and what limits it\n"
        f"Next: deformable-detr predict {folder / 'run'} YOUR_PICTURES --output out"
    )


def _val_images(data: Path) -> list[dict[str, Any]]:
    images: list[dict[str, Any]] = json.loads(
        (data / "annotations" / "instances_val.json").read_text(encoding="utf-8")
    )["images"]
    return images

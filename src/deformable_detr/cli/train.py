"""The command `deformable-detr train DATA`."""

from __future__ import annotations

import os
from argparse import SUPPRESS, Namespace

from ..config import Layout
from .options import Parser, add_data, add_device
from .settings import COMMON, GROUPS, add_recipe, add_settings, recipe_names

SUMMARY = "train a detector on DATA"
# The fields that most users need, in addition to --recipe, --config, --output, --init-from, --resume and
# --device.
COMMON_FIELDS = ("train.epochs", "train.batch_size", "train.lr", "data.image_size")


def add_arguments(parser: Parser) -> None:
    parser.description = (
        f"Train a detector on DATA. Recipes: {recipe_names()}. "
        "Start it with torchrun to use several processes."
    )
    add_data(parser)
    shown = add_recipe(
        parser,
        "deformable_detr_lite",
        "deformable_detr_lite on a CPU (its values are shown here), deformable_detr_r50_two_stage on a GPU",
    )
    parser.option("--output", str, "runs/train", "The run folder.", shown="FOLDER", group=COMMON)
    parser.option(
        "--init-from",
        str | None,
        None,
        "A MODEL to start from; its classes may differ from those of the data.",
        shown="MODEL",
        group=COMMON,
    )
    parser.switch(
        "--resume",
        "auto",
        "Continue the run in --output exactly where it stopped; with auto, start one if no state was saved.",
        group=COMMON,
    )
    add_device(parser, COMMON)
    add_settings(parser, shown, COMMON_FIELDS)
    group = GROUPS["data"]
    parser.option("--format", Layout, SUPPRESS, "Short for --data.format.", to="data.format", group=group)
    parser.flag("--strict", "Short for --data.strict true.", to="data.strict", group=group)


def run(arguments: Namespace) -> int:
    from ..training import train

    train(**vars(arguments))  # `train` takes fields of the configuration as overrides
    if os.environ.get("RANK", "0") == "0":  # under torchrun every process reaches this line
        print(f"checkpoints and metrics are in {arguments.output}")
    return 0

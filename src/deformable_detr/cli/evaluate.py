"""The command `deformable-detr evaluate MODEL DATA`."""

from __future__ import annotations

from argparse import ArgumentTypeError, Namespace
from typing import Literal

from .options import (
    Parser,
    add_data,
    add_format,
    add_max_pixels,
    add_model,
    add_output,
    add_remote_images,
    add_split,
    add_tta,
    without_tta,
)

SUMMARY = "measure the average precision of MODEL on DATA"


def add_arguments(parser: Parser) -> None:
    parser.description = "Measure the average precision of MODEL on a split of DATA."
    add_model(parser)
    add_data(parser)
    add_split(parser)
    add_format(parser)
    add_max_pixels(parser)
    parser.flag("--strict", "Refuse data that has problems.")
    add_remote_images(parser)
    add_output(parser, None, "Write the result as JSON to this file (metrics.json).")
    parser.option("--metric", Literal["coco", "voc"], "coco", "COCO's or Pascal VOC's average precision.")
    parser.option(
        "--batching",
        Literal["exact", "padded"],
        "exact",
        "exact: only images of equal size share a batch; padded: images are padded, as the authors do.",
    )
    parser.option("--batch-size", int, 2, "The maximum number of images in a batch, per process.")
    parser.option(
        "--max-detections",
        int | None,
        None,
        "The maximum number of detections per image.",
        default_shown="100, or twice the objects of an image that has more",
    )
    parser.option("--iou-threshold", float, 0.5, "voc: the IoU from which a detection counts as a hit.")
    parser.option(
        "--interpolation",
        Literal["every_point", "11_point"],
        "every_point",
        "voc: average precision over every recall level, or over 11 of them (2007).",
    )
    parser.option("--plus-one", bool, False, "voc: count the last pixel in widths and heights.")
    add_tta(parser)
    parser.option(
        "--decide",
        str,
        None,
        "Choose the minimum score of the detections of each class, and save it in MODEL: for the best F1 "
        "(best_f1), or to find as many objects as possible with at least this precision (such as 0.9).",
        shown="best_f1|PRECISION",
        read=_rule,
    )


def run(arguments: Namespace) -> int:
    from rich.console import Console

    from ..evaluation import evaluate, print_metrics

    console = Console()
    print_metrics(evaluate(**without_tta(arguments), console=console), console)
    return 0


def _rule(text: str) -> float | str:
    if text == "best_f1":
        return text
    try:
        return float(text)
    except ValueError:
        raise ArgumentTypeError(f"must be best_f1 or a precision such as 0.9, not {text}") from None

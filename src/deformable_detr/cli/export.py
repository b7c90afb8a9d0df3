"""The command `deformable-detr export MODEL --to ENGINE --output FILE`."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Literal

from ..checkpoint.names import check_exported_file
from .options import Parser, add_format, add_max_pixels, add_split

SUMMARY = "write MODEL for ONNX, OpenVINO or torch.export, and check it"


def add_arguments(parser: Parser) -> None:
    parser.description = (
        "Write MODEL for another engine, after comparing it with the PyTorch model on pictures."
    )
    parser.argument(
        "model",
        "MODEL",
        "A run or checkpoint folder, an authors' .pth file, a transformers folder or hub id, or `demo`.",
    )
    parser.option(
        "--to",
        Literal["onnx", "openvino", "torch"],
        None,
        "The engine to write for: onnx, openvino or torch.",
        shown="ENGINE",
        required=True,
    )
    parser.option(
        "--output", str, None, "The file to write: .onnx, .xml or .pt2.", shown="FILE", required=True
    )
    parser.option(
        "--operator",
        Literal["native", "grid_sample", "gather"] | None,
        None,
        "The way in which deformable attention samples: with one standard operator (grid_sample), with "
        "arithmetic alone (gather) or with this package's operator (native, torch only). Default: native for "
        "torch, otherwise grid_sample.",
    )
    parser.option(
        "--precision",
        Literal["fp32", "int8"],
        "fp32",
        "The number format of the convolutions; int8 needs --calibration.",
    )
    parser.option(
        "--calibration",
        str,
        None,
        "Pictures, folders or globs that determine the ranges of int8.",
        shown="IMAGES",
        many=True,
    )
    parser.option(
        "--images",
        str,
        None,
        "Pictures, folders or globs on which the models are compared.",
        shown="IMAGES",
        many=True,
    )
    parser.option(
        "--data", str | None, None, "A data set on which average precision is also compared.", shown="DATA"
    )
    add_split(parser, "The part of the data set to use.")
    add_format(parser)
    add_max_pixels(parser)
    parser.option("--num-images", int, 4, "The maximum number of pictures that are compared.")
    for name, unit, with_int8 in (
        ("box", "coordinates of a box, as a share of the picture's side", 0.05),
        ("score", "a score, from 0 to 1", 0.15),
        ("ap", "average precision, from 0 to 1", 0.02),
    ):
        parser.option(
            f"--max-{name}-drift",
            float | None,
            None,
            f"The maximum difference of {unit}.",
            default_shown=f"0.001, or {with_int8} with int8",
        )


def run(arguments: Namespace) -> int:
    check_exported_file(arguments.to, Path(arguments.output))  # before PyTorch is imported
    from rich.console import Console

    from ..exporter import export

    print(export(**vars(arguments), console=Console()).summary())
    return 0

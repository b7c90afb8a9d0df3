"""The command `deformable-detr convert MODEL OUT --to FORMAT`."""

from __future__ import annotations

from argparse import Namespace
from typing import Literal

from .options import Parser

SUMMARY = "rewrite MODEL in native, authors' or transformers' format"


def add_arguments(parser: Parser) -> None:
    parser.description = "Rewrite MODEL in another project's checkpoint format."
    parser.argument(
        "source",
        "MODEL",
        "A run or checkpoint folder, an authors' .pth file, a transformers folder or hub id, or `demo`.",
    )
    parser.argument("output", "OUT", "The folder to write; for the authors' format a .pth file.")
    parser.option(
        "--to",
        Literal["native", "authors", "transformers"],
        None,
        "The format to write: native (this project's), authors (their repositories') or transformers.",
        shown="FORMAT",
        required=True,
    )


def run(arguments: Namespace) -> int:
    from ..checkpoint.convert import convert

    print(f"written: {convert(**vars(arguments))}")
    return 0

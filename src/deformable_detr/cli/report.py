"""The command `deformable-detr report MODEL DATA`."""

from __future__ import annotations

from argparse import Namespace

from .options import Parser, add_data, add_format, add_max_pixels, add_model, add_output, add_split

SUMMARY = "write a page on how good MODEL is and what limits it"


def add_arguments(parser: Parser) -> None:
    parser.description = (
        "Write one HTML file on how good MODEL is on a split of DATA, what limits it and how it was trained."
    )
    add_model(parser)
    add_data(parser)
    add_split(parser, "The part of DATA to measure on.")
    add_format(parser)
    add_max_pixels(parser)
    add_output(
        parser,
        None,
        "The file to write. Default: report.html in the run folder, or report_SPLIT.html if a split other "
        "than val is named.",
    )
    parser.option(
        "--most-images",
        int,
        24,
        "The maximum number of images that are examined again to find the stage that lost an object.",
    )


def run(arguments: Namespace) -> int:
    from ..report import write_report

    print(f"written: {write_report(**vars(arguments))}")
    return 0

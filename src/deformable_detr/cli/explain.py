"""The commands `deformable-detr explain MODEL IMAGE` and `explain MODEL --missed DATA`."""

from __future__ import annotations

from argparse import ArgumentTypeError, Namespace
from typing import Any

from ..errors import UserError
from ..words import count, printable
from .options import Parser, add_format, add_max_pixels, add_model, add_output, add_split, add_threshold

SUMMARY = "show where MODEL looked, and why it missed objects"


def add_arguments(parser: Parser) -> None:
    parser.usage = (
        f"{parser.prog} MODEL IMAGE [--output FILE] [options]\n"
        f"       {parser.prog} MODEL [IMAGE] --missed DATA [--output FOLDER]"
    )
    parser.description = (
        "Show where MODEL looked for each detection in IMAGE: as a picture, or as a page to explore. With "
        "--missed, say why objects of DATA were not found."
    )
    add_model(parser)
    parser.argument(
        "image", "IMAGE", "The picture to explain; with --missed, the only image to examine.", optional=True
    )
    add_output(
        parser,
        None,
        "The file to write: a .png, .pdf or .svg picture, or an .html page; with --missed, a folder. "
        "Default: explanation.png or missed.",
        shown="PATH",
    )
    add_threshold(parser)
    parser.option("--layer", int | None, None, "The decoder layer to draw, from 1. Default: the last.")
    parser.option(
        "--most",
        int | None,
        None,
        "The maximum number of detections to draw or, with --missed, of objects for each reason.",
        default_shown="5, or 4 with --gradient, or 3 with --missed",
    )
    parser.option(
        "--at",
        str,
        None,
        "Also draw where the encoder looks from this pixel.",
        shown="X,Y",
        read=_position,
    )
    parser.flag("--gradient", "Draw which pixels x, y, width, height and score of a detection depend on.")
    parser.option(
        "--missed", str | None, None, "Find out why objects of this data set were missed.", shown="DATA"
    )
    add_split(parser, "With --missed: the part of DATA to use.")
    add_format(parser)
    add_max_pixels(parser)


def run(arguments: Namespace) -> int:
    common = {
        "threshold": arguments.threshold,
        "device": arguments.device,
        "max_pixels": arguments.max_pixels,
    }
    if arguments.most is not None:
        common["most"] = arguments.most
    if arguments.missed is not None:
        _refuse_with("--missed", arguments, "gradient", "at", "layer")
        return _explain_missed(arguments, common)
    if arguments.image is None:
        raise UserError("IMAGE is missing: name the picture to explain, or a data set with --missed DATA.")
    from ..explain.commands import write_explanation, write_gradient

    output = arguments.output or "explanation.png"
    if arguments.gradient:
        _refuse_with("--gradient", arguments, "at", "layer")
        found = write_gradient(arguments.model, arguments.image, output, **common)
    else:
        at = () if arguments.at is None else (arguments.at,)
        found = write_explanation(
            arguments.model, arguments.image, output, layer=arguments.layer, at=at, **common
        )
    print(f"{count(found.detections, 'detection')} explained: {output}")
    print(f"threshold: {printable(found.selection.in_words())}")
    return 0


def _explain_missed(arguments: Namespace, common: dict[str, Any]) -> int:
    from rich.console import Console

    from ..explain.commands import print_missed, write_missed

    output = arguments.output or "missed"
    report = write_missed(
        arguments.model,
        arguments.missed,
        output,
        split=arguments.split,
        image=arguments.image,
        format=arguments.format,
        **common,
    )
    print_missed(report, Console())
    print(f"written: {output}")
    return 0


def _refuse_with(option: str, arguments: Namespace, *others: str) -> None:
    for other in others:
        if getattr(arguments, other):
            raise UserError(f"{option} and --{other} do not go together: leave one out.")


def _position(text: str) -> tuple[float, float]:
    try:
        x, y = map(float, text.split(","))
    except ValueError:
        raise ArgumentTypeError(f"must be X,Y in pixels, such as 120,80, not {text}") from None
    return x, y

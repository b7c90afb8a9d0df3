"""Parts that figures 5 and 6 share: a model, some pictures, and a figure and JSON for each."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deformable_detr.cli.options import Parser, add_model
from deformable_detr.errors import UserError
from deformable_detr.files import make_output_folder, write_json
from deformable_detr.prediction.sources import find_pictures
from experiments.commands import add_output

from .pictures import save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PHOTO_DPI = 160  # resolution for photographs


def add_picture_arguments(parser: Parser, most: int) -> None:
    add_model(parser)
    parser.argument("images", "IMAGE", "Pictures, folders or globs.", many=True)
    add_output(parser, "JSON, PNG and SVG")
    parser.option("--threshold", float, 0.4, "The minimum score of a detection.")
    parser.option("--most", int, most, "The maximum number of detections per picture, the best ones.")


def pictures_of(arguments: Namespace) -> list[Path]:
    """Return the pictures that the command names, and create the output folder.

    Raises:
        UserError: if there is no picture, an option is out of range, or the output is not a folder.
    """
    if arguments.most < 1:
        raise UserError(f"--most must be at least 1, not {arguments.most}.")
    output = Path(arguments.output)
    images = find_pictures(arguments.images, output)
    make_output_folder(output)
    return images


def write_figures(
    name: str,
    arguments: Namespace,
    figures: Sequence[Figure],
    entries: Sequence[Mapping[str, Any]],
    mean: Mapping[str, Any],
) -> None:
    """Write NAME.json, and NAME.png and .svg, or NAME-1.png … if there are several pictures. `mean` is the
    mean over all detections of all pictures."""
    output = Path(arguments.output)
    written = [output / f"{name}.json"]
    for number, figure in enumerate(figures, start=1):
        stem = name if len(figures) == 1 else f"{name}-{number}"
        written += save_figure(figure, output / stem, PHOTO_DPI)
    content = {
        "model": arguments.model,
        "threshold": arguments.threshold,
        "mean": mean,
        "pictures": list(entries),
    }
    write_json(written[0], content)
    print("written: " + ", ".join(map(str, written)))

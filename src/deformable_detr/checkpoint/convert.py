"""Convert checkpoints from one format to another. Float32 weights keep every bit."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from ..errors import UserError
from . import authors, load, save, transformers_format

CheckpointFormat = Literal["native", "authors", "transformers"]


def convert(source: str | Path, output: str | Path, to: CheckpointFormat) -> Path:
    """Write the model `source` in one of the checkpoint formats.

    Args:
        source: anything that `checkpoint.load` accepts.
        output: a new folder or, for `authors`, a new file NAME.pth.
        to: `native`, `authors` (Deformable DETR's and DETR's own repositories) or `transformers`.

    Returns:
        `output` as a path.

    Raises:
        UserError: if there is no format `to`, `source` cannot be read, `output` exists, lacks the suffix
            .pth (`authors` only) or cannot be written, or the format cannot express the model or its
            category ids. In the last case, the message names the field or the id.
    """
    output = Path(output)
    if to not in get_args(CheckpointFormat):
        raise UserError(f"there is no format {to}: choose one of {', '.join(get_args(CheckpointFormat))}.")
    if output.exists():
        raise UserError(f"{output} already exists: remove it, or choose another output.")
    if to == "authors" and output.suffix != ".pth":
        raise UserError(f"{output}: the authors' checkpoints are files NAME.pth; add the suffix.")
    checkpoint = load(source)
    if to == "native":
        save(output, checkpoint)
    elif to == "authors":
        authors.save(output, checkpoint)
    else:
        transformers_format.save(output, checkpoint)
    return output

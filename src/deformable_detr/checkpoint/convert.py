"""One kind of checkpoint to another, tensor by tensor, bit by bit."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from ..errors import UserError
from . import authors, load, save, transformers_format

Target = Literal["native", "authors", "transformers"]


def convert(source: str | Path, output: str | Path, to: Target) -> Path:
    """Write the model `source` in another project's format, or another project's in ours.

    Args:
        source: anything that `checkpoint.load` takes.
        output: a new folder; for `authors` a new file, NAME.pth.
        to: `native`, `authors` (Deformable DETR's and DETR's own repositories) or `transformers`.

    Returns:
        `output` as a path.

    Raises:
        UserError: `source` cannot be read; `output` exists; `to` has no such model, naming the field.
    """
    output = Path(output)
    if to not in get_args(Target):
        raise UserError(f"there is no format {to}: choose one of {', '.join(get_args(Target))}.")
    if output.exists():
        raise UserError(f"{output} exists already: remove it, or choose another output.")
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

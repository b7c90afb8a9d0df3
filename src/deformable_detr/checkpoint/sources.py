"""Load the model that a user names by a path, a hub id or `demo` (MODEL in the commands)."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import UserError
from ..run_folder.names import BEST, CHECKPOINTS, LAST
from ..words import one_line
from . import authors, native, transformers_format
from .contents import Checkpoint
from .names import BUNDLED, DEMO, EXPORTED

SUPPORTED = (
    "a run folder, a checkpoint folder, an authors' .pth file, a transformers folder or hub id, or `demo`"
)
_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


def load(source: str | Path) -> Checkpoint:
    """Read a model and return its checkpoint, with the model in evaluation mode, on the CPU and in float32.

    Args:
        source: a run folder (of which the best or, failing that, the last checkpoint is read), a checkpoint
            folder, an authors' .pth file, a transformers folder or hub id, or `demo` for the bundled model.

    Raises:
        UserError: if there is no such model, it cannot be read or downloaded, or it is an exported model,
            whose weights cannot be loaded.
    """
    try:
        return _load(source)
    except UserError:
        raise
    # A file of another project may hold any values; checking the type of each would take much code.
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"{source} is damaged or was changed by hand: some of its values have the wrong type or size "
            f"({type(error).__name__}: {one_line(error):.200}); use an unchanged copy."
        ) from error


def _load(source: str | Path) -> Checkpoint:
    path = Path(source).expanduser()
    if str(source) == DEMO:
        return native.load(BUNDLED)
    if path.suffix.lower() in EXPORTED and not path.is_dir():
        raise UserError(f"{path} is an exported model, which has no weights to load here: give {SUPPORTED}.")
    if path.is_dir():
        return _load_folder(path)
    if path.is_file():
        if path.name in (native.WEIGHTS_FILE, native.CONFIG_FILE):
            raise UserError(f"{path} is a part of a checkpoint: give its folder, {path.parent}.")
        return authors.load(path)
    if isinstance(source, str) and _HUB_ID.fullmatch(source):
        return transformers_format.load(_download(source), source)
    raise UserError(f"there is no model {source}: give {SUPPORTED}.")


def checkpoint_folder(source: str | Path) -> Path:
    """Return the folder of the checkpoint that `load` reads, so that thresholds can be saved in it.

    Raises:
        UserError: if `source` is neither a run folder with a checkpoint nor a checkpoint folder of this
            package.
    """
    path = Path(source).expanduser()
    if path.is_dir() and str(source) != DEMO:
        if (path / CHECKPOINTS).is_dir():
            return _checkpoint_of_run(path)
        if native.is_native(path):
            return path
    raise UserError(
        f"{source} is neither a run folder nor a checkpoint folder, so that thresholds cannot be saved in "
        "it: convert it first (`deformable-detr convert MODEL OUT --to native`)."
    )


def _load_folder(folder: Path) -> Checkpoint:
    if (folder / CHECKPOINTS).is_dir():
        return native.load(_checkpoint_of_run(folder))
    if native.is_native(folder):
        return native.load(folder)
    if (folder / native.CONFIG_FILE).is_file():
        return transformers_format.load(folder)
    raise UserError(f"the folder {folder} holds no model: give {SUPPORTED}.")


def _checkpoint_of_run(folder: Path) -> Path:
    for name in (BEST, LAST):
        if native.is_native(folder / CHECKPOINTS / name):
            return folder / CHECKPOINTS / name
    raise UserError(f"the run folder {folder} holds no checkpoint yet: continue the training with --resume.")


def _download(hub_id: str) -> Path:
    """Download a model from the Hugging Face hub, or use the cached copy, and return the folder.

    Raises:
        UserError: if the model cannot be downloaded.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=["*.json", "model*.safetensors*"]))
        if not any(folder.glob("model*.safetensors")):
            folder = Path(snapshot_download(hub_id, allow_patterns=["*.json", "pytorch_model*"]))
    except (OSError, ValueError) as error:  # the base classes of the hub's errors
        raise UserError(
            f"there is no folder {hub_id}, and no model of that name can be downloaded from the Hugging "
            f"Face hub ({str(error).splitlines()[0]}): give {SUPPORTED}."
        ) from error
    return folder

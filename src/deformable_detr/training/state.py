"""The state of a run: everything that changes during training, and the file from which `--resume` continues.

A sample is a pure function of (seed, epoch, index of the image), the dropout of an update depends only on
(seed, update, rank), and the learning rate depends only on the update's number. Therefore the file needs no
state of random generators or schedules to continue a stopped run exactly. It contains the weights of the
model and of the routes, the moving average, the states of the optimizer and the gradient scaler, the best AP,
two counters, and facts about the data and the batch that must not change (`Identity`).
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.records import Split
from ..errors import UserError
from ..files import DAMAGED_FILE_ERRORS, replacing
from ..models import DetectionModel
from ..run_folder.names import STATE_FILE
from ..words import exists, one_line
from .optimisation import cpu_copy, use_layout_of_parameters

FORMAT = 3  # format 1, which had no number, used other seeds for dropout; format 2 had no digest


@dataclass
class TrainingState:
    """The values that an update changes, and the progress of the run.

    Attributes:
        average: the moving average of the weights; None if there is none.
        step: the number of updates done.
        closed_step: the number of updates until the end of the last closed epoch. An epoch is closed when it
            has been evaluated, if an evaluation was due, and its checkpoints have been written.
        best_ap: the best AP so far; None before the first evaluation that has an AP.
        routes: the routes, which are used only in training, by name. Checkpoints do not contain them.
    """

    model: DetectionModel
    average: DetectionModel | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    step: int = 0
    closed_step: int = 0
    best_ap: float | None = None
    routes: nn.ModuleDict = field(default_factory=nn.ModuleDict)

    @property
    def model_to_keep(self) -> DetectionModel:
        """The model to evaluate and to save: the moving average or, without one, the trained model."""
        return self.model if self.average is None else self.average

    def is_best(self, ap: float) -> bool:
        """Return True if `ap` is better than every earlier AP, and not -1 (for a split without objects)."""
        return exists(ap) and (self.best_ap is None or ap > self.best_ap)


@dataclass(frozen=True)
class Identity:
    """The facts that must be the same when a run is resumed, so that it continues exactly.

    Attributes:
        total_batch: the number of images in an update, over all processes. It determines the number of
            updates per epoch, and so the epoch and the position in it at which the run continues.
        num_images: the number of training images. A shuffled epoch identifies images by index.
        class_names: the names of the classes in the order of the class indices, to which the weights of the
            class heads belong.
    """

    total_batch: int
    num_images: int
    class_names: tuple[str | None, ...]

    @classmethod
    def from_split(cls, split: Split, total_batch: int) -> Identity:
        return cls(total_batch, len(split), tuple(split.classes.names))


def require_state(output: Path) -> None:
    """Raise a `UserError` if `output` contains no run to resume."""
    if not (output / STATE_FILE).is_file():
        raise UserError(
            f"--resume: {output} contains no training state; leave --resume out to start a run there."
        )


def save_state(output: Path, state: TrainingState, identity: Identity) -> None:
    """Write `training_state.pt` into the run folder `output`, completely or not at all.

    Raises:
        UserError: if the file cannot be written.
    """
    content: dict[str, Any] = {
        "format": FORMAT,
        "step": state.step,
        "closed_step": state.closed_step,
        "best_ap": state.best_ap,
        "total_batch": identity.total_batch,
        "data": {"images": identity.num_images, "classes": list(identity.class_names)},
        "model": cpu_copy(state.model.state_dict()),
        "routes": {"names": list(state.routes), "tensors": cpu_copy(state.routes.state_dict())},
        "average": None if state.average is None else cpu_copy(state.average.state_dict()),
        "optimizer": state.optimizer.state_dict(),
        "scaler": state.scaler.state_dict(),
    }
    content["digest"] = _digest(content)
    with replacing(output / STATE_FILE) as draft:
        torch.save(content, draft)


def read_state(output: Path) -> dict[str, Any]:
    """Return the content of `training_state.pt` in the run folder `output`, for `load_state`.

    Raises:
        UserError: if the file cannot be read, is damaged, was changed, or is from another version.
    """
    path = output / STATE_FILE
    content = _read(path)
    if content.get("format") != FORMAT:
        raise UserError(
            f"--resume: {path} was written by another version of this package, so that its run cannot be "
            f"continued exactly: start a new run with --init-from {output}."
        )
    if content.pop("digest", None) != _digest(content):
        raise UserError(
            f"--resume: {path} is not as it was written (its digest differs), so that its run cannot be "
            f"continued exactly: restore the file from a copy, or start a new run with --init-from {output}."
        )
    return content


def load_state(content: Mapping[str, Any], output: Path, state: TrainingState, identity: Identity) -> None:
    """Load a saved state into `state`, whose model and optimizer are built from the current settings.

    Learning rates and weight decay are those of the current settings, which may differ from the saved ones.
    If only the current run has a moving average, it starts as the saved weights.

    Args:
        content: the result of `read_state(output)`, perhaps in another process.
        output: the run folder, for messages.
        identity: the facts of the current run, which must equal the saved ones.

    Raises:
        UserError: if the saved run had another number of training images, other classes, another number of
            images per update, other routes or another model.
    """
    path = output / STATE_FILE
    _require_same(content, identity, output)
    routes = content.get("routes", {"names": [], "tensors": {}})  # older states have none
    _require_same_routes(routes["names"], list(state.routes), output)
    groups = state.optimizer.param_groups
    settings = [{name: group[name] for name in ("initial_lr", "weight_decay")} for group in groups]
    try:
        state.model.load_state_dict(content["model"])
        state.routes.load_state_dict(routes["tensors"])
        state.optimizer.load_state_dict(content["optimizer"])
        use_layout_of_parameters(state.optimizer)
        if state.average is not None:
            state.average.load_state_dict(content["average"] or content["model"])
    except (RuntimeError, ValueError) as error:
        example = str(error).strip().splitlines()[-1].strip().rstrip(".")  # the last of PyTorch's many lines
        raise UserError(
            f"--resume: the model differs from the one in {path} ({example}): "
            "resume with the same model settings."
        ) from error
    for group, own in zip(state.optimizer.param_groups, settings, strict=True):
        group.update(own)
    if content["scaler"] and state.scaler.is_enabled():
        state.scaler.load_state_dict(content["scaler"])
    state.step, state.closed_step = content["step"], content["closed_step"]
    state.best_ap = content["best_ap"]


def _digest(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of all values, because PyTorch itself does not detect changed bytes in a tensor."""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        elif isinstance(value, Mapping):
            digest.update(f"{len(value)} entries".encode())
            for key, each in value.items():
                digest.update(repr(key).encode())
                add(each)
        elif isinstance(value, list | tuple):
            digest.update(f"{len(value)} values".encode())
            for each in value:
                add(each)
        else:
            digest.update(repr(value).encode())

    add(content)
    return digest.hexdigest()


def _read(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, *DAMAGED_FILE_ERRORS) as error:
        # PyTorch would advise to read the file in a way in which it can run code.
        reason = "it is damaged" if isinstance(error, pickle.UnpicklingError) else one_line(error)
        raise UserError(f"--resume: {path} cannot be read ({reason}); start a new run.") from error
    if not isinstance(content, dict):
        raise UserError(f"--resume: {path} is not a training state; start a new run.")
    return content


def _require_same(content: Mapping[str, Any], identity: Identity, output: Path) -> None:
    images, classes = content["data"]["images"], tuple(content["data"]["classes"])
    if (images, classes) != (identity.num_images, identity.class_names):
        raise UserError(
            f"--resume: the data differ from those of the run ({images} training images of {len(classes)} "
            f"classes, now {identity.num_images} of {len(identity.class_names)}): start a new run with "
            f"--init-from {output}."
        )
    if content["total_batch"] != identity.total_batch:
        raise UserError(
            f"--resume: the run used {content['total_batch']} images per update, now there are "
            f"{identity.total_batch}: keep batch_size x accumulate x processes the same."
        )


def _require_same_routes(saved: list[str], current: list[str], output: Path) -> None:
    if saved != current:
        before, now = (", ".join(names) or "none" for names in (saved, current))
        raise UserError(
            f"--resume: the run's train.routes are {before}, now they are {now}: keep them the same, or "
            f"start a new run with --init-from {output}."
        )

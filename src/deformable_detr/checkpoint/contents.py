"""The contents of a checkpoint, independent of its format on disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from ..config import LITE0, RECIPES, TORCHVISION_RESNETS, DataConfig, ModelConfig
from ..detections import ClassTable
from ..errors import UserError
from ..models import DetectionModel, build_model
from .decision import Decision
from .description import Description
from .initialisation import no_random_weights


@dataclass(frozen=True)
class Checkpoint:
    """A model and everything that is needed to use it.

    Attributes:
        model: the model with its weights.
        config: the configuration of `model`.
        classes: one entry per class of the model.
        data: the settings of the preprocessing.
        recipe: the name of the model's recipe or, for checkpoints of other projects, of the closest one. It
            is always a name in `config.RECIPES`.
        decision: the minimum score of each class; None if no scores have been chosen.
    """

    model: DetectionModel
    config: ModelConfig
    classes: ClassTable
    data: DataConfig
    recipe: str
    decision: Decision | None = None

    @property
    def description(self) -> Description:
        """The description of the model, which is everything except the model itself."""
        return Description(self.config, self.classes, self.data, self.recipe, self.decision)


def empty_model(config: ModelConfig) -> DetectionModel:
    """Build the model of `config` in evaluation mode with arbitrary weights, which `load_state` replaces.

    Raises:
        UserError: if the backbone is unknown, or does not support the settings.
    """
    if config.backbone.name not in (*TORCHVISION_RESNETS, LITE0):
        return build_model(config).eval()  # timm's models may have tensors that are not in the state dict
    with no_random_weights():
        return build_model(config).eval()


def load_state(model: DetectionModel, state: Mapping[str, Tensor]) -> None:
    """Fill `model` with `state`, which must contain all tensors of the model and no others.

    Raises:
        UserError: if tensors are missing, unknown, or of another shape or kind of number (floating point or
            not); the message names some of them.
    """
    own = model.state_dict()
    check_fit(
        missing=[name for name in own if name not in state],
        unexpected=[name for name in state if name not in own],
        unfit=[
            f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
            for name in own
            if name in state and state[name].shape != own[name].shape
        ],
    )
    for name, tensor in own.items():
        if tensor.is_floating_point() != state[name].is_floating_point():
            raise UserError(f"the tensor {name} is {state[name].dtype} instead of {tensor.dtype}.")
    model.load_state_dict(state)


def check_fit(missing: list[str], unexpected: list[str], unfit: list[str]) -> None:
    """Raise a `UserError` that names some tensors, unless all three lists are empty.

    Args:
        missing: the names of tensors that a model needs and a file lacks.
        unexpected: the names of tensors that the model does not have.
        unfit: descriptions of tensors with another shape than the model's.
    """
    complaints = [
        f"{len(names)} {what} ({_some(names)})"
        for what, names in (("missing", missing), ("unknown", unexpected), ("of another shape", unfit))
        if names
    ]
    if complaints:
        raise UserError(
            f"the tensors are not those of a model of these sizes: {', '.join(complaints)}; the file is "
            "damaged, or of an unsupported variant."
        )


@contextmanager
def blaming(source: object) -> Iterator[None]:
    """Add `source` and a colon to the front of the message of a `UserError` that the block raises."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{source}: {error}") from error


def _some(names: Iterable[str], limit: int = 3) -> str:
    names = sorted(names)
    return ", ".join(names[:limit]) + (", …" if len(names) > limit else "")


def closest_recipe(config: ModelConfig) -> str:
    """Return the name of the recipe whose model differs from `config` in the fewest fields.

    The numbers of classes and queries do not matter. In case of a tie, it is the first one in `RECIPES`.
    """

    def distance(name: str) -> int:
        theirs = dataclasses.replace(
            RECIPES[name]().model, num_classes=config.num_classes, num_queries=config.num_queries
        )
        fields = [item.name for item in dataclasses.fields(ModelConfig)]
        return sum(getattr(theirs, field) != getattr(config, field) for field in fields)

    return min(RECIPES, key=distance)

"""Stages: the predictions that have losses, with their targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..structures import Predictions, Target
from .assignment import Assigner


@dataclass(frozen=True)
class Stage:
    """The predictions of one layer and their targets.

    Attributes:
        suffix: the end of the names of the layer's losses, such as `_proposals`.
        assigner: the assigner of the layer's queries to the objects.
        weight: the factor on the layer's losses in the total.
        repeats: the number of times that each object occurs, as for `Repeated`. The losses are divided by
            `repeats` times the number of objects, except the class loss of a softmax.
    """

    suffix: str
    predictions: Predictions
    targets: Sequence[Target]
    assigner: Assigner
    weight: float = 1.0
    repeats: float = 1.0


def stages_of(
    layers: Sequence[Predictions],
    targets: Sequence[Target],
    assigner: Assigner,
    *,
    name: str = "",
    auxiliary: bool = True,
    weight: float = 1.0,
    repeats: float = 1.0,
) -> list[Stage]:
    """Return a stage for each decoder layer that has losses: the last layer, then the others in order.

    Args:
        layers: the predictions of all decoder layers, in order.
        name: the suffix of the last layer. The suffixes of earlier layers are `name` plus `_0`, `_1`, ….
        auxiliary: whether layers before the last one have losses.
        targets, assigner, weight, repeats: as in `Stage`.
    """
    numbered = {name: layers[-1]}
    if auxiliary:
        numbered |= {f"{name}_{number}": layer for number, layer in enumerate(layers[:-1])}
    return [Stage(suffix, layer, targets, assigner, weight, repeats) for suffix, layer in numbered.items()]


def objects_only(targets: Sequence[Target]) -> list[Target]:
    """Return the targets of the first stage, which ignores classes: all objects have class 0."""
    return [
        Target(target.labels.new_zeros(len(target)), target.boxes_cxcywh, target.image_id)
        for target in targets
    ]

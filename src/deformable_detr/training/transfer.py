"""The transfer of weights from a model with other classes or another number of queries (`--init-from`).

Rows of the class heads are matched by class name, learned queries by their index, and all other tensors by
name and shape. Everything that stays untrained is reported.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..checkpoint import Checkpoint
from ..detections import loose_name
from ..errors import UserError
from ..words import listed

CLASS_HEAD = ".class_head."
OBJECTNESS = "queries.head.class_head."
LEARNED_QUERIES = ("queries.positions", "queries.content")


@dataclass(frozen=True)
class Transfer:
    """The result of a transfer of weights from a source to the model that will be trained.

    Attributes:
        matched_classes: the names of the model's classes whose weights come from the source.
        fresh_classes: the names of the model's other classes, which start untrained.
        fresh_queries: the number of the model's queries that start untrained.
        fresh_tensors: the names of the model's tensors that start untrained as a whole.
        unused_tensors: the names of the source's tensors that the model does not have.
    """

    matched_classes: tuple[str, ...]
    fresh_classes: tuple[str, ...]
    fresh_queries: int
    fresh_tensors: tuple[str, ...]
    unused_tensors: tuple[str, ...]

    def sentences(self) -> list[str]:
        lines = [_sentence(self.matched_classes, "classes taken over")]
        if self.fresh_classes:
            lines.append(_sentence(self.fresh_classes, "classes start fresh"))
        if self.fresh_queries:
            lines.append(f"{self.fresh_queries} queries start fresh")
        if self.fresh_tensors:
            lines.append(_sentence(self.fresh_tensors, "tensors start fresh"))
        if self.unused_tensors:
            lines.append(_sentence(self.unused_tensors, "tensors left out"))
        return lines


def _sentence(names: tuple[str, ...], what: str) -> str:
    return f"{len(names)} {what}: {listed(names, limit=8)}"


@torch.no_grad()
def transfer(source: Checkpoint, target: Checkpoint) -> Transfer:
    """Copy the weights of `source` into `target.model`, in place, and return an account of it.

    If the two models have different classification schemes, no rows of their class heads are copied.

    Raises:
        UserError: if a tensor of the same name differs in shape, except in the number of classes or queries.
    """
    same_scheme = source.config.classification == target.config.classification
    source_rows = {
        # Rows of a softmax and of a sigmoid have different meanings.
        loose_name(name): row
        for row, name in enumerate(source.classes.names)
        if name is not None and same_scheme
    }
    names = [(row, name) for row, name in enumerate(target.classes.names) if name is not None]
    pairs = [(row, source_rows[loose_name(name)]) for row, name in names if loose_name(name) in source_rows]
    if same_scheme and source.config.classification == "softmax":
        pairs.append((len(target.classes), len(source.classes)))  # the no-object row

    state, own = source.model.state_dict(), target.model.state_dict()
    unfit = [name for name, tensor in own.items() if name in state and not _fits(name, tensor, state[name])]
    if unfit:
        raise UserError(
            f"--init-from: the model differs from recipe {target.recipe} in {len(unfit)} tensors, such as "
            f"{unfit[0]}; leave --recipe out to use the architecture of {source.recipe} unchanged."
        )
    fresh_queries = 0
    for name, tensor in own.items():
        if name not in state:
            continue
        if CLASS_HEAD in name:
            for row, source_row in pairs:
                tensor[row] = state[name][source_row]
        elif name in LEARNED_QUERIES:
            rows = min(len(tensor), len(state[name]))
            tensor[:rows] = state[name][:rows]
            fresh_queries = len(tensor) - rows
        else:
            tensor.copy_(state[name])
        if name.startswith(OBJECTNESS) and same_scheme:
            # A proposal's objectness is logit 0 of the first stage, whichever class has this index.
            tensor[0] = state[name][0]
    return Transfer(
        matched_classes=tuple(name for _, name in names if loose_name(name) in source_rows),
        fresh_classes=tuple(name for _, name in names if loose_name(name) not in source_rows),
        fresh_queries=fresh_queries,
        fresh_tensors=tuple(name for name in own if name not in state),
        unused_tensors=tuple(name for name in state if name not in own),
    )


def _fits(name: str, tensor: Tensor, source: Tensor) -> bool:
    """Return whether `source` fits `tensor`.

    Class heads and learned queries may differ in the number of rows; other tensors must have the same shape.
    """
    if CLASS_HEAD in name or name in LEARNED_QUERIES:
        return tensor.shape[1:] == source.shape[1:]
    return tensor.shape == source.shape

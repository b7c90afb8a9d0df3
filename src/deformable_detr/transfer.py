"""Start from a model with other classes or another number of queries (`--init-from`).

Rows of the class heads are matched by class name, learned queries by position in the list; everything
else by name and shape. What stays fresh is said, never guessed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .checkpoint import Checkpoint
from .errors import UserError

LEARNED_QUERIES = ("queries.positions", "queries.content")


@dataclass(frozen=True)
class Transfer:
    """What was taken over: class names found in the source, class names that start fresh, tensors of the
    model that start fresh as a whole."""

    matched_classes: tuple[str, ...]
    fresh_classes: tuple[str, ...]
    fresh_tensors: tuple[str, ...]

    def sentences(self) -> list[str]:
        lines = [f"{len(self.matched_classes)} classes taken over: {_shortened(self.matched_classes)}"]
        if self.fresh_classes:
            lines.append(f"{len(self.fresh_classes)} classes start fresh: {_shortened(self.fresh_classes)}")
        if self.fresh_tensors:
            lines.append(f"{len(self.fresh_tensors)} tensors start fresh: {_shortened(self.fresh_tensors)}")
        return lines


def _shortened(names: tuple[str, ...], limit: int = 8) -> str:
    shown = ", ".join(names[:limit]) or "none"
    return shown if len(names) <= limit else f"{shown}, … and {len(names) - limit} more"


@torch.no_grad()
def transfer(source: Checkpoint, target: Checkpoint) -> Transfer:
    """Copy the weights of `source` into `target.model`, in place.

    Raises:
        UserError: where the two are different architectures.
    """
    source_rows = {name.strip().lower(): i for i, name in enumerate(source.classes.names) if name is not None}
    pairs, matched, fresh = [], [], []
    for row, name in enumerate(target.classes.names):
        if name is None:
            continue
        if name.strip().lower() in source_rows:
            pairs.append((row, source_rows[name.strip().lower()]))
            matched.append(name)
        else:
            fresh.append(name)
    if source.config.classification == target.config.classification == "softmax":
        pairs.append((len(target.classes), len(source.classes)))  # the no-object row

    state = source.model.state_dict()
    fresh_tensors = []
    unfit = []
    for name, tensor in target.model.state_dict().items():
        if name not in state:
            fresh_tensors.append(name)
        elif ".class_head." in name:
            for row, source_row in pairs:
                tensor[row] = state[name][source_row]
        elif name in LEARNED_QUERIES and tensor.shape[1:] == state[name].shape[1:]:
            rows = min(len(tensor), len(state[name]))
            tensor[:rows] = state[name][:rows]
        elif tensor.shape != state[name].shape:
            unfit.append(name)
        else:
            tensor.copy_(state[name])
    # A proposal's objectness is logit 0 of the first stage, whatever class stands there.
    objectness = "queries.head.class_head"
    for name in (f"{objectness}.weight", f"{objectness}.bias"):
        if name in state and name in target.model.state_dict():
            target.model.state_dict()[name][0] = state[name][0]
    if unfit:
        raise UserError(
            f"--init-from: the model differs from recipe {target.recipe} in {len(unfit)} tensors, {unfit[0]} "
            f"for one; leave --recipe out to take over the architecture of {source.recipe} as it is."
        )
    return Transfer(tuple(matched), tuple(fresh), tuple(fresh_tensors))

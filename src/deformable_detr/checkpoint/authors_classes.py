"""Convert class heads, whose rows are category ids in the authors' files and class indices in this package.

The authors' code has 91 classes for the data set named coco, whatever its annotations contain, and refuses a
file with another number of rows. Therefore, each class is written to the row of its id among 91 rows, and
the rows of ids that the data set lacks get values with which they never have the best score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..errors import UserError

DATASET_FILE = "coco"  # the authors' option, by which their code chooses the number of classes
NUM_CLASSES = 91
NEVER = -50.0  # the logit of an unused class: exp(-50) is negligible compared with others, in float32 too
_LEAVES = (".weight", ".bias")


def check_ids(category_ids: Sequence[int]) -> None:
    """Raise a `UserError` unless the authors' models have a row for the id of each class."""
    outside = [category_id for category_id in category_ids if not 0 <= category_id < NUM_CLASSES]
    if outside:
        raise UserError(
            f"category id {outside[0]} cannot be written as a checkpoint of the authors: their code has "
            f"{NUM_CLASSES} classes, ids 0 to {NUM_CLASSES - 1}; convert --to native or transformers."
        )


def spread(state: Mapping[str, Tensor], category_ids: Sequence[int]) -> dict[str, Tensor]:
    """Return this package's state dict with its class heads spread over the authors' 91 rows.

    `category_ids` are the ids of the classes, from 0 to 90, which are the numbers of their rows. The rows of
    the first stage's head keep their numbers. DETR's row for "no object" follows the 91 rows.
    """
    return {
        name: _spread(tensor, _rows(category_ids, of_proposals=name.startswith("queries.")))
        if name.endswith(tuple(f"class_head{leaf}" for leaf in _LEAVES))
        else tensor
        for name, tensor in state.items()
    }


def gather(
    state: Mapping[str, Tensor], category_ids: Sequence[int], proposals: int | None
) -> dict[str, Tensor]:
    """Return a state dict of the authors with one row per class in the class heads, instead of 91 rows.

    DETR's row for "no object", which follows the 91 rows, is kept. The rows of the first stage's head keep
    their numbers.

    Args:
        state: the authors' tensors by name.
        category_ids: the id of each class, which is the number of its row among the 91 (from 0).
        proposals: the index of the first stage's head in `class_embed`; None if there is no first stage.
    """
    first_stage = f"class_embed.{proposals}."
    return {
        name: _gather(tensor, _rows(category_ids, of_proposals=first_stage in name))
        if "class_embed." in name
        else tensor
        for name, tensor in state.items()
    }


def _rows(category_ids: Sequence[int], of_proposals: bool) -> list[int]:
    """Return the number of the authors' row for each row of a class head in this package.

    Rows of the first stage's head (`of_proposals`) keep their numbers, because row 0 means "object" there.
    """
    return list(range(len(category_ids))) if of_proposals else list(category_ids)


def _spread(tensor: Tensor, rows: list[int]) -> Tensor:
    extra = len(tensor) - len(rows)  # 1 for DETR's class "no object", which is last; otherwise 0
    theirs = tensor.new_full((NUM_CLASSES + extra, *tensor.shape[1:]), 0.0 if tensor.ndim > 1 else NEVER)
    theirs[rows] = tensor[: len(rows)]
    theirs[NUM_CLASSES:] = tensor[len(rows) :]
    return theirs


def _gather(tensor: Tensor, rows: list[int]) -> Tensor:
    return torch.cat([tensor[rows], tensor[NUM_CLASSES:]])

"""Files of H-DETR, DAC-DETR and Mr. DETR: a two-stage Deformable DETR with learned content ("plus").

These methods add parts that are used only in training: further queries, a table of labels for denoising,
instruction tokens, and a second proposal head. Without them, the model is a Deformable DETR with
`model.queries` set to `mixed`, and its tensors have the authors' names (H-DETR, DAC-DETR) or detrex's
(Mr. DETR). `without_training` converts the state dicts of these methods to the authors' form. It leaves out
the tensors that are used only in training, with a warning.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..words import listed

CONTENT = "query_embed.weight"
_USUAL_QUERIES = 300
_HYBRID_ROWS = 1800  # H-DETR's published files: 300 queries, and 1500 more in training

# (pattern, replacement) of parts of detrex's names; the order matters.
_FROM_DETREX = (
    (r"^transformer\.level_embeds$", "transformer.level_embed"),
    (r"^query_embedding\.", "query_embed."),
    (r"^neck\.convs\.(\d+)\.conv\.", r"input_proj.\1.0."),
    (r"^neck\.convs\.(\d+)\.norm\.", r"input_proj.\1.1."),
    (r"^neck\.extra_convs\.0\.conv\.", "input_proj.3.0."),
    (r"^neck\.extra_convs\.0\.norm\.", "input_proj.3.1."),
    (r"^backbone\.stem\.", "backbone.0.body."),
    (r"^backbone\.res([2-5])\.", lambda match: f"backbone.0.body.layer{int(match[1]) - 1}."),
    (r"(?<=\.)conv([123])\.norm\.", r"bn\1."),
    (r"\.shortcut\.norm\.", ".downsample.1."),
    (r"\.shortcut\.", ".downsample.0."),
    (r"(?<=encoder\.layers\.)(\d+)\.attentions\.0\.", r"\1.self_attn."),
    (r"(?<=encoder\.layers\.)(\d+)\.norms\.0\.", r"\1.norm1."),
    (r"(?<=encoder\.layers\.)(\d+)\.norms\.1\.", r"\1.norm2."),
    (r"(?<=decoder\.layers\.)(\d+)\.attentions\.0\.attn\.", r"\1.self_attn."),
    (r"(?<=decoder\.layers\.)(\d+)\.attentions\.0\.norm_o2o\.", r"\1.norm2."),
    (r"(?<=decoder\.layers\.)(\d+)\.attentions\.1\.", r"\1.cross_attn."),
    (r"(?<=decoder\.layers\.)(\d+)\.norms\.0\.", r"\1.norm1."),
    (r"(?<=decoder\.layers\.)(\d+)\.norms\.1\.", r"\1.norm3."),
    # The decoder's layers are of another class, which has a second matrix, for training, next to each matrix.
    (r"\.ffns\.0\.layers\.0\.linear\.linear\.", ".linear1."),
    (r"\.ffns\.0\.layers\.1\.linear\.", ".linear2."),
    (r"\.ffns\.0\.layers\.0\.0\.", ".linear1."),
    (r"\.ffns\.0\.layers\.1\.", ".linear2."),
)
_ONLY_IN_TRAINING = re.compile(
    r"^label_enc\."
    r"|^transformer\.decoder\.(class_embed_o2m_encoder|bbox_embed_enc_o2m)\."
    r"|\.attentions\.0\.(instruction_o2m|instruction_o2m_pos|norm_o2m)\."
    r"|\.linear_sep\.|^criterion\."
)


class TensorsLeftOut(UserWarning):
    """A warning about tensors that were left out because they are used only in training."""


def is_detrex(state: Mapping[str, Tensor]) -> bool:
    """Return whether the tensors have the names of detrex's Deformable DETR."""
    return "transformer.level_embeds" in state and any(name.startswith("neck.convs.") for name in state)


def without_training(state: Mapping[str, Tensor], options: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors that prediction needs, under the names of Deformable DETR's authors.

    Tensors with detrex's names, such as Mr. DETR's, are renamed. If tensors that H-DETR, DAC-DETR or Mr. DETR
    use only in training, or rows of the queries' content, are left out, a `TensorsLeftOut` warning names
    up to 8 of them. All other tensors, among them those of the authors' own models, are returned unchanged.

    Args:
        state: the tensors of a file by name, with the authors' names or with detrex's.
        options: `args` of the file, in which `num_queries_one2one` is the number of queries to keep. If this
            option is missing, 300 queries are kept of 1800, as in H-DETR's files. In all other cases, for
            example if the option is not an integer, all queries are kept.
    """
    left_out = [name for name in state if _ONLY_IN_TRAINING.search(name)]
    kept = {name: tensor for name, tensor in state.items() if name not in left_out}
    if is_detrex(state):
        kept = {_name_of_authors(name): tensor for name, tensor in kept.items()}
    if has_content(kept):
        rows = len(kept[CONTENT])
        queries = options.get("num_queries_one2one", _USUAL_QUERIES if rows == _HYBRID_ROWS else rows)
        if isinstance(queries, int) and 0 < queries < rows:
            kept[CONTENT] = kept[CONTENT][:queries]
            left_out.append(f"rows {queries + 1} to {rows} of {CONTENT}")
    if left_out:
        warnings.warn(
            f"{len(left_out)} tensors that are used only in training are left out: "
            f"{listed(left_out, limit=8)}",
            TensorsLeftOut,
            stacklevel=2,
        )
    return kept


def has_content(state: Mapping[str, Tensor]) -> bool:
    """Return whether tensors in the authors' form are those of a two-stage model with learned content.

    Learned content in a two-stage model is also called "mixed selection".
    """
    return "transformer.enc_output.weight" in state and CONTENT in state


def _name_of_authors(name: str) -> str:
    for pattern, replacement in _FROM_DETREX:
        name = re.sub(pattern, replacement, name)
    return name

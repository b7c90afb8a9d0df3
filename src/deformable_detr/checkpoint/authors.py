"""Read and write the authors' checkpoints (specification §8).

These are the `.pth` files of fundamentalvision/Deformable-DETR and facebookresearch/detr, and of three
projects that train Deformable DETR in other ways (authors_plus.py). The state dict determines nearly
everything about the model. The rest (dilation, dropout, the number of heads, and the number of queries of a
two-stage model) is in `args`, which some files lack, among them the published DETR files.
"""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import BackboneConfig, DataConfig, ModelConfig
from ..detections import ClassTable
from ..errors import UserError
from ..files import DAMAGED_FILE_ERRORS, check_readable, replacing
from .authors_classes import DATASET_FILE, check_ids, gather, spread
from .authors_plus import CONTENT, has_content, is_detrex, without_training
from .coco_classes import COCO_80, class_table_for
from .contents import (
    Checkpoint,
    blaming,
    closest_recipe,
    empty_model,
    load_state,
)
from .correspondence import to_ours, to_theirs
from .families import (
    FAMILIES,
    Family,
    count,
    family_of,
    inexpressible,
    is_state_dict,
    matrix_shape,
    points_of,
    resnet_of,
    without_batch_counts,
)
from .naming import Naming

PROJECT = "the authors"
_MAGIC = (b"PK", b"\x80\x02")  # of a zip archive; of a pickle of protocol 2, used before PyTorch 1.6
_ENCODER_LAYER = "transformer.encoder.layers.#"
_DECODER_LAYER = "transformer.decoder.layers.#"

_DETR = {
    "neck.convolution": "input_proj",
    "encoder.layers.#.attention.attention": f"{_ENCODER_LAYER}.self_attn",
    "encoder.layers.#.norm": f"{_ENCODER_LAYER}.norm1",
    "encoder.layers.#.feedforward": _ENCODER_LAYER,
    "encoder.layers.#.feedforward.norm": f"{_ENCODER_LAYER}.norm2",
    "decoder.layers.#.self_attention": f"{_DECODER_LAYER}.self_attn",
    "decoder.layers.#.self_norm": f"{_DECODER_LAYER}.norm1",
    "decoder.layers.#.cross_attention.attention": f"{_DECODER_LAYER}.multihead_attn",
    "decoder.layers.#.cross_norm": f"{_DECODER_LAYER}.norm2",
    "decoder.layers.#.feedforward": _DECODER_LAYER,
    "decoder.layers.#.feedforward.norm": f"{_DECODER_LAYER}.norm3",
    "decoder.norm": "transformer.decoder.norm",
}

# The norm of cross-attention has a lower number (norm1) than that of self-attention (norm2), although
# cross-attention is computed after self-attention (specification §3.3).
_DEFORMABLE_DETR = {
    "neck.levels": "input_proj",
    "position.level_embedding": "transformer.level_embed",
    "encoder.layers.#.attention": f"{_ENCODER_LAYER}.self_attn",
    "encoder.layers.#.attention.value_projection": f"{_ENCODER_LAYER}.self_attn.value_proj",
    "encoder.layers.#.attention.output_projection": f"{_ENCODER_LAYER}.self_attn.output_proj",
    "encoder.layers.#.norm": f"{_ENCODER_LAYER}.norm1",
    "encoder.layers.#.feedforward": _ENCODER_LAYER,
    "encoder.layers.#.feedforward.norm": f"{_ENCODER_LAYER}.norm2",
    "queries.reference_points": "transformer.reference_points",
    "queries.memory_projection": "transformer.enc_output",
    "queries.memory_norm": "transformer.enc_output_norm",
    "queries.box_projection": "transformer.pos_trans",
    "queries.box_norm": "transformer.pos_trans_norm",
    "decoder.layers.#.cross_attention": f"{_DECODER_LAYER}.cross_attn",
    "decoder.layers.#.cross_attention.value_projection": f"{_DECODER_LAYER}.cross_attn.value_proj",
    "decoder.layers.#.cross_attention.output_projection": f"{_DECODER_LAYER}.cross_attn.output_proj",
    "decoder.layers.#.cross_norm": f"{_DECODER_LAYER}.norm1",
    "decoder.layers.#.self_attention": f"{_DECODER_LAYER}.self_attn",
    "decoder.layers.#.self_norm": f"{_DECODER_LAYER}.norm2",
    "decoder.layers.#.feedforward": _DECODER_LAYER,
    "decoder.layers.#.feedforward.norm": f"{_DECODER_LAYER}.norm3",
}


NAMINGS: dict[Family, Naming] = {
    "detr": Naming(
        modules=_DETR,
        backbone="backbone.0.body.",
        queries="query_embed.weight",
        class_head="class_embed",
        box_head="bbox_embed",
        numbered_heads=False,
        decoder="transformer.decoder",
        splits_attention=False,
    ),
    "deformable_detr": Naming(
        modules=_DEFORMABLE_DETR,
        backbone="backbone.0.body.",
        queries="query_embed.weight",
        class_head="class_embed",
        box_head="bbox_embed",
        numbered_heads=True,
        decoder="transformer.decoder",
        splits_attention=False,
    ),
}


def load(path: Path) -> Checkpoint:
    """Read a checkpoint of the authors, of any variant, and infer the sizes from its tensors.

    If the file has no `args`, the model is assumed to have 8 heads, to have 300 queries if it is a two-stage
    model without learned content, to be trained with a dropout of 0.1 (0 if its content is learned), and to
    be dilated if the file's name contains `dc5`, as the published names of dilated models do. If the file has
    no class names, 91 classes (or detrex's 80) are assumed to be COCO's; other numbers of classes get the
    names "class 0", "class 1", … Tensors that are used only in training are left out, with a warning.

    Raises:
        UserError: if the file is not an authors' checkpoint, cannot be read, is damaged, contains pickled
            objects other than tensors and options, or is of a variant that this package lacks, such as a
            segmentation model or one with `--pre_norm`.
    """
    content = read_pickle(path)
    state = content.get("model", content)
    if not is_state_dict(state):
        raise UserError(
            f"{path} holds no state dict under the key model: a .pth file must be a checkpoint of Deformable "
            "DETR or DETR."
        )
    state = without_batch_counts(state)
    options: dict[str, Any] = {"dilation": "dc5" in path.stem.lower()}
    if isinstance(content.get("args"), argparse.Namespace):
        options |= vars(content["args"])
    names_coco_80 = is_detrex(state)  # its COCO models have a logit for each name, and none for unused ids
    with blaming(path):
        state = _without_unused_classes(without_training(state, options), options)
        family, config = _infer_config(state, options)
        model = empty_model(config)
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        load_state(model, to_ours(state, NAMINGS[family].correspondences(config, shapes), shapes))
        classes = _class_table(config, options)
        if names_coco_80 and config.num_classes == len(COCO_80):
            classes = COCO_80
    return Checkpoint(
        model=model, config=config, classes=classes, data=DataConfig(), recipe=closest_recipe(config)
    )


def read_pickle(path: Path) -> dict[str, Any]:
    """Read a dictionary from a PyTorch file without running code that the file may contain.

    Raises:
        UserError: if the file cannot be read, is damaged, contains objects other than tensors, plain values
            and options (`argparse.Namespace`), or does not contain a dictionary.
    """
    check_readable(path)
    with path.open("rb") as file:
        start = file.read(2)
    if start not in _MAGIC:
        raise UserError(
            f"{path} is not a PyTorch file: it must be a .pth checkpoint of Deformable DETR or DETR."
        )
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is damaged, or contains pickled objects other than tensors and options, which may run "
            "code when they are read: save only its state dict, torch.save({'model': …})."
        ) from error
    except DAMAGED_FILE_ERRORS as error:
        raise UserError(f"{path} cannot be read as a PyTorch file ({error!r:.200}).") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a checkpoint.")
    return content


def _without_unused_classes(state: dict[str, Tensor], options: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the state dict without the unused rows that `save` adds to class heads.

    The state dict of a file that `save` did not write, such as the authors' own files, is returned unchanged.
    `options` are the file's `args`.
    """
    if "class_names" not in options or options.get("dataset_file") != DATASET_FILE:
        return state
    two_stage = "transformer.enc_output.weight" in state
    return gather(
        state, options["category_ids"], count(state, "transformer.decoder.layers") if two_stage else None
    )


def _infer_config(state: Mapping[str, Tensor], options: Mapping[str, Any]) -> tuple[Family, ModelConfig]:
    if "transformer.level_embed" in state:
        return "deformable_detr", _infer_deformable_detr(state, options)
    if any(name.startswith(("detr.", "mask_head.", "bbox_attention.")) for name in state):
        raise UserError("this is a segmentation model: only detection models are supported.")
    if "query_embed.weight" in state and "class_embed.weight" in state:
        return "detr", _infer_detr(state, options)
    raise UserError(
        "this is not a checkpoint of Deformable DETR or DETR: it has neither transformer.level_embed nor "
        "class_embed.weight and query_embed.weight."
    )


def _infer_detr(state: Mapping[str, Tensor], options: Mapping[str, Any]) -> ModelConfig:
    if "transformer.encoder.norm.weight" in state:
        raise UserError("this model was trained with --pre_norm, which is not supported.")
    num_queries, hidden_dim = matrix_shape(state, "query_embed.weight")
    return ModelConfig(
        **FAMILIES["detr"],
        num_classes=matrix_shape(state, "class_embed.weight")[0] - 1,
        num_queries=num_queries,
        hidden_dim=hidden_dim,
        num_levels=1,
        **_common_fields(state, options),
    )


def _infer_deformable_detr(state: Mapping[str, Tensor], options: Mapping[str, Any]) -> ModelConfig:
    num_levels, hidden_dim = matrix_shape(state, "transformer.level_embed")
    mixed = has_content(state)
    # Published models with learned content were trained without dropout.
    common = _common_fields(state, {"dropout": 0.0, **options} if mixed else options)
    weights = matrix_shape(state, "transformer.decoder.layers.0.cross_attn.attention_weights.weight")[0]
    two_stage = "transformer.enc_output.weight" in state
    if mixed:
        num_queries = matrix_shape(state, CONTENT)[0]
    elif two_stage:
        num_queries = options.get("num_queries", 300)
    else:
        num_queries = matrix_shape(state, "query_embed.weight")[0]
    return ModelConfig(
        **FAMILIES["deformable_detr"],
        num_classes=matrix_shape(state, "class_embed.0.weight")[0],
        queries="mixed" if mixed else "proposals" if two_stage else "reference_points",
        refine_references="transformer.decoder.bbox_embed.0.layers.0.weight" in state,
        mask_invalid_proposals=False,
        num_queries=num_queries,
        hidden_dim=hidden_dim,
        num_levels=num_levels,
        num_points=points_of(weights, common["num_heads"], num_levels),
        **common,
    )


def _common_fields(state: Mapping[str, Tensor], options: Mapping[str, Any]) -> dict[str, Any]:
    body = "backbone.0.body."
    backbone = {
        name.removeprefix(body): tensor.shape for name, tensor in state.items() if name.startswith(body)
    }
    return {
        "backbone": BackboneConfig(resnet_of(backbone), dilation=options["dilation"]),
        "num_heads": options.get("nheads", 8),
        "encoder_layers": count(state, "transformer.encoder.layers"),
        "decoder_layers": count(state, "transformer.decoder.layers"),
        "ffn_dim": matrix_shape(state, "transformer.decoder.layers.0.linear1.weight")[0],
        "dropout": options.get("dropout", 0.1),
    }


def _class_table(config: ModelConfig, options: Mapping[str, Any]) -> ClassTable:
    if "class_names" not in options:  # the authors' own files
        return class_table_for(config.num_classes)
    names, ids = options["class_names"], options["category_ids"]
    if len(names) != config.num_classes:
        raise UserError(f"it has {config.num_classes} classes but args.class_names holds {len(names)} names.")
    return ClassTable(tuple(names), tuple(ids))


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a file that the authors' code can load.

    Raises:
        UserError: if the authors' code has no such model (the message names the field), or lacks a row for
            one of the category ids, or if the file cannot be written.
    """
    content = content_of(checkpoint)
    with replacing(path) as draft:
        torch.save(content, draft)


def content_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the content of the file that `save` writes: the tensors and `args`, the authors' options.

    The class names are in `args`, where the authors' code ignores them.

    Raises:
        UserError: if the authors' code has no such model (the message names the field), or lacks a row for
            one of the category ids.
    """
    family = check_expressible(checkpoint.config)
    check_ids(checkpoint.classes.category_ids)
    state = spread(checkpoint.model.state_dict(), checkpoint.classes.category_ids)
    return {
        "model": to_theirs(state, NAMINGS[family].correspondences(checkpoint.config, state)),
        "args": _arguments(checkpoint),
    }


def check_expressible(config: ModelConfig) -> Family:
    """Check that the authors' code can build the model of `config`, and return its architecture.

    Raises:
        UserError: if the authors' code cannot build the model; the message names the field.
    """
    family = family_of(config, PROJECT)
    if family == "deformable_detr" and config.backbone.name in ("resnet18", "resnet34"):
        raise inexpressible(PROJECT, "backbone.name", config.backbone.name, "it must be resnet50 or larger")
    if config.two_stage and config.hidden_dim != 256:
        raise inexpressible(PROJECT, "hidden_dim", config.hidden_dim, "its two-stage models have 256")
    return family


def _arguments(checkpoint: Checkpoint) -> argparse.Namespace:
    """Return the authors' options (specification §8.4) that describe the model and its classes."""
    config = checkpoint.config
    common = {
        "backbone": config.backbone.name,
        "dilation": config.backbone.dilation,
        "position_embedding": "sine",
        "enc_layers": config.encoder_layers,
        "dec_layers": config.decoder_layers,
        "dim_feedforward": config.ffn_dim,
        "hidden_dim": config.hidden_dim,
        "dropout": config.dropout,
        "nheads": config.num_heads,
        "num_queries": config.num_queries,
        "masks": False,
        "dataset_file": DATASET_FILE,
        "class_names": list(checkpoint.classes.names),
        "category_ids": list(checkpoint.classes.category_ids),
    }
    if config.attention == "dense":
        return argparse.Namespace(**common, pre_norm=False)
    return argparse.Namespace(
        **common,
        num_feature_levels=config.num_levels,
        enc_n_points=config.num_points,
        dec_n_points=config.num_points,
        with_box_refine=config.refine_references,
        two_stage=config.two_stage,
    )

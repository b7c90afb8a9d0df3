"""Read and write checkpoints of Hugging Face transformers (`deformable_detr`, `detr`) without
importing transformers.

The checkpoints are folders with `config.json` and weights. transformers_names.py lists the tensors' names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from ..config import (
    TORCHVISION_RESNETS,
    BackboneConfig,
    DataConfig,
    ModelConfig,
)
from ..detections import ClassTable
from ..errors import UserError
from ..files import read_json, replacing
from .authors import read_pickle
from .coco_classes import class_table_for
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
    is_state_dict,
    matrix_shape,
    points_of,
    resnet_of,
    without_batch_counts,
)
from .native import CONFIG_FILE, WEIGHTS_FILE, read_safetensors
from .transformers_names import BACKBONE, NAMINGS, hub_name

PROJECT = "transformers"
ARCHITECTURES: dict[Family, str] = {
    "detr": "DetrForObjectDetection",
    "deformable_detr": "DeformableDetrForObjectDetection",
}
PREPROCESSOR_FILE = "preprocessor_config.json"
UNUSED = "N/A"  # the name of ids without a class in transformers' COCO models


def load(folder: Path, name: str | None = None) -> Checkpoint:
    """Read a folder that transformers' `save_pretrained` wrote, or a copy of a folder on the hub.

    Args:
        folder: the folder to read.
        name: the model's name in error messages; None means the path of the folder.

    Raises:
        UserError: if the model is of another kind, has options that this package lacks, or is incomplete or
            damaged.
    """
    values = read_json(folder / CONFIG_FILE)
    with blaming(name or folder):
        family = _family(values)
    weights = _read_weights(folder)
    if not is_state_dict(weights):
        raise UserError(f"{name or folder} holds other values than tensors in its weights: use another copy.")
    weights = without_batch_counts(weights)
    with blaming(name or folder):
        state = {hub_name(key): value for key, value in weights.items()}
        config = _model_config(family, values, state)
        if config.refine_references and config.queries == "reference_points":
            _fill_in_tied_class_heads(state, config.decoder_layers)
        model = empty_model(config)
        shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
        load_state(model, to_ours(state, NAMINGS[family].correspondences(config, shapes), shapes))
        classes = _class_table(values, config.num_classes)
    return Checkpoint(
        model=model,
        config=config,
        classes=classes,
        data=_data_config(folder / PREPROCESSOR_FILE),
        recipe=closest_recipe(config),
    )


def _family(values: Mapping[str, Any]) -> Family:
    for family, architecture in ARCHITECTURES.items():
        if values.get("model_type") == family:
            if architecture not in (values.get("architectures") or [architecture]):
                raise UserError(f"this is a {values['architectures'][0]}: only {architecture} is supported.")
            return family
    raise UserError(
        f"this is a transformers model of type {values.get('model_type')}: only "
        f"{' and '.join(ARCHITECTURES)} are supported."
    )


def _model_config(family: Family, values: Mapping[str, Any], state: Mapping[str, Tensor]) -> ModelConfig:
    """Infer sizes from the tensors, and all other fields from transformers' options and their defaults.

    Raises:
        UserError: if an option or a size is not supported.
    """
    for option, supported in (("activation_function", "relu"), ("position_embedding_type", "sine")):
        if values.get(option, supported) != supported:
            raise UserError(f"it has {option}={values[option]}: only {supported} is supported.")
    num_heads = values.get("decoder_attention_heads", 8)
    if values.get("encoder_attention_heads", 8) != num_heads:
        raise UserError("it has different numbers of heads in encoder and decoder, which is not supported.")
    common: dict[str, Any] = {
        "backbone": _backbone_config(values, state),
        "num_heads": num_heads,
        "encoder_layers": count(state, "model.encoder.layers"),
        "decoder_layers": count(state, "model.decoder.layers"),
        "ffn_dim": matrix_shape(state, "model.decoder.layers.0.fc1.weight")[0],
        "dropout": values.get("dropout", 0.1),
    }
    queries = "model.query_position_embeddings.weight"
    if family == "detr":
        num_queries, hidden_dim = matrix_shape(state, queries)
        return ModelConfig(
            **FAMILIES["detr"],
            num_classes=matrix_shape(state, "class_labels_classifier.weight")[0] - 1,
            num_queries=num_queries,
            hidden_dim=hidden_dim,
            num_levels=1,
            **common,
        )
    num_levels, hidden_dim = matrix_shape(state, "model.level_embed")
    weights = matrix_shape(state, "model.decoder.layers.0.encoder_attn.attention_weights.weight")[0]
    two_stage = values.get("two_stage", False)
    class_head = "class_embed.0.weight"
    if class_head not in state:  # safetensors files store a tensor under only one of its names
        class_head = f"model.decoder.{class_head}"
    return ModelConfig(
        **FAMILIES["deformable_detr"],
        num_classes=matrix_shape(state, class_head)[0],
        queries="proposals" if two_stage else "reference_points",
        refine_references=values.get("with_box_refine", False),
        mask_invalid_proposals=False,
        num_queries=values.get("two_stage_num_proposals", 300)
        if two_stage
        else matrix_shape(state, queries)[0],
        hidden_dim=hidden_dim,
        num_levels=num_levels,
        num_points=points_of(weights, num_heads, num_levels),
        **common,
    )


def _backbone_config(values: Mapping[str, Any], state: Mapping[str, Tensor]) -> BackboneConfig:
    """Infer the ResNet, which transformers builds with timm or with its own code, and its dilation.

    Raises:
        UserError: if the backbone is not a supported ResNet at stride 32 or 16.
    """
    shapes = {
        name.removeprefix(BACKBONE): tensor.shape
        for name, tensor in state.items()
        if name.startswith(BACKBONE)
    }
    options = values.get("backbone_config") or {}
    default_type = "timm_backbone" if values.get("use_timm_backbone", True) else "resnet"
    model_type = options.get("model_type", default_type)
    if model_type == "timm_backbone":
        # Some of timm's ResNets differ from torchvision's only in computation, so only the name identifies
        # them.
        name = (options.get("backbone") or values.get("backbone") or "resnet50").split(".")[0]
        dilation = options.get("output_stride") == 16 if options else values.get("dilation", False)
        supported = name in TORCHVISION_RESNETS and options.get("output_stride") in (None, 16, 32)
    else:
        name, dilation = model_type, False
        supported = model_type == "resnet" and not any(
            options.get(option) for option in ("downsample_in_bottleneck", "downsample_in_first_stage")
        )
    if not supported:
        raise UserError(
            f"it has the backbone {name} with options that are not supported: it must be one of "
            f"{', '.join(TORCHVISION_RESNETS)} at stride 32 or 16."
        )
    return BackboneConfig(resnet_of(shapes), dilation=dilation)


def _fill_in_tied_class_heads(state: dict[str, Tensor], num_layers: int) -> None:
    """Add the first layer's class head to `state` for the layers that have none there.

    transformers 5 ties the class heads of one-stage refinement models, and then stores only one.
    """
    for leaf in ("weight", "bias"):
        first = f"class_embed.0.{leaf}"
        if first in state:
            for layer in range(1, num_layers):
                state.setdefault(f"class_embed.{layer}.{leaf}", state[first])


def _read_weights(folder: Path) -> dict[str, Tensor]:
    for name, read in ((WEIGHTS_FILE, read_safetensors), ("pytorch_model.bin", read_pickle)):
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return read(folder / name)
        if index.is_file():
            shards = sorted(set(read_json(index)["weight_map"].values()))
            return {
                key: value
                for shard in shards
                # Only the bare file name is used, so that an index cannot point outside its folder.
                for key, value in read(folder / Path(shard).name).items()
            }
    raise UserError(f"{folder} holds no weights: expected {WEIGHTS_FILE} or pytorch_model.bin.")


def _class_table(values: Mapping[str, Any], num_classes: int) -> ClassTable:
    labels = values.get("id2label")
    if labels is None:  # transformers does not write its default, which is two labels without names
        return class_table_for(num_classes)
    names = {int(index): None if label == UNUSED else str(label) for index, label in labels.items()}
    if sorted(names) != list(range(num_classes)):
        raise UserError(f"it has logits for {num_classes} classes, but id2label names {len(names)}.")
    ids = values.get("category_ids", range(num_classes))
    return ClassTable(tuple(names[index] for index in range(num_classes)), tuple(ids))


def _data_config(path: Path) -> DataConfig:
    """Read sizes and normalisation from the file `path`, or return the paper's values if it does not exist.

    For settings that the file lacks, the result has the paper's values; the maximum size is then at least the
    image size.

    Raises:
        UserError: if the file cannot be read, or resizes pictures in a way that is not supported.
    """
    if not path.is_file():
        return DataConfig()
    values = read_json(path)
    default = DataConfig()
    size = values.get("size", {})
    if not isinstance(size, dict):  # files of 2022 write "size": 800, "max_size": 1333
        longest = {"longest_edge": values["max_size"]} if "max_size" in values else {}
        size = {"shortest_edge": size, **longest}
    if not size.keys() <= {"shortest_edge", "longest_edge"} or values.get("do_resize") is False:
        raise UserError(
            f"{path} resizes pictures to {size}: only shortest_edge with "
            "longest_edge is supported; edit the file."
        )
    image_size = size.get("shortest_edge", default.image_size)
    return DataConfig(
        image_size=image_size,
        max_size=size.get("longest_edge", max(default.max_size, image_size)),
        mean=tuple(values.get("image_mean", default.mean)),
        std=tuple(values.get("image_std", default.std)),
    )


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a new folder for transformers' `from_pretrained`.

    Raises:
        UserError: if transformers has no such model or does not resize pictures in this way (the message
            names the field), or the folder cannot be written.
    """
    family = family_of(checkpoint.config, PROJECT)
    if checkpoint.data.size_multiple != 1:
        raise UserError(
            f"data.size_multiple={checkpoint.data.size_multiple} cannot be written for {PROJECT}, which does "
            "not round the sides of pictures: such a model can only be kept in the native format."
        )
    state = checkpoint.model.state_dict()
    tensors = to_theirs(state, NAMINGS[family].correspondences(checkpoint.config, state))
    with replacing(folder) as draft:
        draft.mkdir()
        save_file(_without_shared(tensors), draft / WEIGHTS_FILE, metadata={"format": "pt"})
        for name, content in (
            (CONFIG_FILE, _config_values(family, checkpoint)),
            (PREPROCESSOR_FILE, _preprocessor_values(family, checkpoint.data)),
        ):
            (draft / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _without_shared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return each tensor under only the first of its names, as safetensors requires.

    When transformers loads the file, it ties the other names to the tensors again.
    """
    first: dict[int, str] = {}
    for name, tensor in tensors.items():
        first.setdefault(id(tensor), name)
    return {name: tensor for name, tensor in tensors.items() if first[id(tensor)] == name}


def _config_values(family: Family, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the content of `config.json` in the hub's form, which every version of transformers can read."""
    config, classes = checkpoint.config, checkpoint.classes
    names = [UNUSED if name is None else name for name in classes.names]
    values: dict[str, Any] = {
        "model_type": family,
        "architectures": [ARCHITECTURES[family]],
        "backbone": config.backbone.name,
        "use_timm_backbone": True,
        "use_pretrained_backbone": False,
        "backbone_config": None,
        "dilation": config.backbone.dilation,
        "num_channels": 3,
        "activation_function": "relu",
        "position_embedding_type": "sine",
        "d_model": config.hidden_dim,
        "encoder_layers": config.encoder_layers,
        "encoder_attention_heads": config.num_heads,
        "encoder_ffn_dim": config.ffn_dim,
        "decoder_layers": config.decoder_layers,
        "decoder_attention_heads": config.num_heads,
        "decoder_ffn_dim": config.ffn_dim,
        "dropout": config.dropout,
        "attention_dropout": config.dropout,
        "num_queries": config.num_queries,
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
        "category_ids": list(classes.category_ids),
    }
    if family == "deformable_detr":
        two_stage = config.two_stage
        values |= {
            "num_feature_levels": config.num_levels,
            "encoder_n_points": config.num_points,
            "decoder_n_points": config.num_points,
            "with_box_refine": config.refine_references,
            "two_stage": two_stage,
            "two_stage_num_proposals": config.num_queries if two_stage else 300,
        }
    return values


def _preprocessor_values(family: Family, data: DataConfig) -> dict[str, Any]:
    return {
        "image_processor_type": ARCHITECTURES[family].replace("ForObjectDetection", "ImageProcessor"),
        "format": "coco_detection",
        "do_resize": True,
        "size": {"shortest_edge": data.image_size, "longest_edge": data.max_size},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(data.mean),
        "image_std": list(data.std),
        "do_pad": True,
    }

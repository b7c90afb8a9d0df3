"""The names of the tensors of `detr` and `deformable_detr` in Hugging Face transformers.

There are two generations of names: those of the files on the hub (which transformers 5 still writes) and
those of transformers 5 in memory. There are also two kinds of backbone names: those of timm and those of
transformers' own ResNet. All names are first translated to the hub's names with timm's backbone names.
"""

from __future__ import annotations

import re

from .families import Family
from .naming import Naming

BACKBONE = "model.backbone.conv_encoder.model."

_ENCODER_LAYER = "model.encoder.layers.#"
_DECODER_LAYER = "model.decoder.layers.#"

_LAYERS = {
    "encoder.layers.#.norm": f"{_ENCODER_LAYER}.self_attn_layer_norm",
    "encoder.layers.#.feedforward.linear1": f"{_ENCODER_LAYER}.fc1",
    "encoder.layers.#.feedforward.linear2": f"{_ENCODER_LAYER}.fc2",
    "encoder.layers.#.feedforward.norm": f"{_ENCODER_LAYER}.final_layer_norm",
    "decoder.layers.#.self_attention": f"{_DECODER_LAYER}.self_attn",
    "decoder.layers.#.self_norm": f"{_DECODER_LAYER}.self_attn_layer_norm",
    "decoder.layers.#.cross_norm": f"{_DECODER_LAYER}.encoder_attn_layer_norm",
    "decoder.layers.#.feedforward.linear1": f"{_DECODER_LAYER}.fc1",
    "decoder.layers.#.feedforward.linear2": f"{_DECODER_LAYER}.fc2",
    "decoder.layers.#.feedforward.norm": f"{_DECODER_LAYER}.final_layer_norm",
}
_DETR = _LAYERS | {
    "neck.convolution": "model.input_projection",
    "encoder.layers.#.attention.attention": f"{_ENCODER_LAYER}.self_attn",
    "decoder.layers.#.cross_attention.attention": f"{_DECODER_LAYER}.encoder_attn",
    "decoder.norm": "model.decoder.layernorm",
}
_DEFORMABLE_DETR = _LAYERS | {
    "neck.levels": "model.input_proj",
    "position.level_embedding": "model.level_embed",
    "encoder.layers.#.attention": f"{_ENCODER_LAYER}.self_attn",
    "encoder.layers.#.attention.value_projection": f"{_ENCODER_LAYER}.self_attn.value_proj",
    "encoder.layers.#.attention.output_projection": f"{_ENCODER_LAYER}.self_attn.output_proj",
    "queries.reference_points": "model.reference_points",
    "queries.memory_projection": "model.enc_output",
    "queries.memory_norm": "model.enc_output_norm",
    "queries.box_projection": "model.pos_trans",
    "queries.box_norm": "model.pos_trans_norm",
    "decoder.layers.#.cross_attention": f"{_DECODER_LAYER}.encoder_attn",
    "decoder.layers.#.cross_attention.value_projection": f"{_DECODER_LAYER}.encoder_attn.value_proj",
    "decoder.layers.#.cross_attention.output_projection": f"{_DECODER_LAYER}.encoder_attn.output_proj",
}

NAMINGS: dict[Family, Naming] = {
    "detr": Naming(
        modules=_DETR,
        backbone=BACKBONE,
        queries="model.query_position_embeddings.weight",
        class_head="class_labels_classifier",
        box_head="bbox_predictor",
        numbered_heads=False,
        decoder="model.decoder",
        splits_attention=True,
    ),
    "deformable_detr": Naming(
        modules=_DEFORMABLE_DETR,
        backbone=BACKBONE,
        queries="model.query_position_embeddings.weight",
        class_head="class_embed",
        box_head="bbox_embed",
        numbered_heads=True,
        decoder="model.decoder",
        splits_attention=True,
    ),
}

# (pattern, replacement): names of transformers 5 in memory, and of its own ResNet, to the hub's names.
_TO_HUB_NAMES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^model\.backbone\.model\.", BACKBONE),
        (r"\.o_proj\.", ".out_proj."),
        (r"(layers\.\d+)\.mlp\.(fc[12])\.", r"\1.\2."),
        (r"\.model\.embedder\.embedder\.convolution\.", ".model.conv1."),
        (r"\.model\.embedder\.embedder\.normalization\.", ".model.bn1."),
        (r"\.shortcut\.convolution\.", ".downsample.0."),
        (r"\.shortcut\.normalization\.", ".downsample.1."),
    )
)
_RESNET_KINDS = {"convolution": "conv", "normalization": "bn"}
_RESNET_LAYER = re.compile(
    r"\.encoder\.stages\.(\d+)\.layers\.(\d+)\.(?:layer\.(\d+)\.(convolution|normalization)\.)?"
)


def hub_name(name: str) -> str:
    """Return the name in the hub's files of the tensor that some version of transformers calls `name`."""
    for pattern, replacement in _TO_HUB_NAMES:
        name = pattern.sub(replacement, name)

    def torchvision_layer(match: re.Match[str]) -> str:
        stage, block, layer, kind = match.groups()
        module = "" if layer is None else f"{_RESNET_KINDS[kind]}{int(layer) + 1}."
        return f".layer{int(stage) + 1}.{block}.{module}"

    return _RESNET_LAYER.sub(torchvision_layer, name)

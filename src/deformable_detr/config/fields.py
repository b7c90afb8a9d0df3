"""Everything that can be chosen, as frozen dataclasses with the paper's defaults.

What cannot work is refused here, when the config is made, with a sentence that names the field; never
deep inside `forward`. Recipes (recipes.py) are instances of `RunConfig`; a run folder keeps its own as
`config.yaml`; a checkpoint keeps `ModelConfig` in `config.json`.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from ..errors import UserError

RUN_CONFIG_FILE = "config.yaml"  # in a run folder

TORCHVISION_RESNETS = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnext101_32x8d",
    "resnext101_64x4d",
)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

ConfigT = TypeVar("ConfigT")

Neck = Literal["projection", "channel_mapper", "fpn", "bifpn"]
Position = Literal["sine", "sine_half_pixel"]
Attention = Literal["dense", "deformable", "deformable_own_level"]
QuerySource = Literal["static", "reference_points", "proposals"]
Classification = Literal["softmax", "sigmoid_focal"]
Augmentation = Literal["paper", "light", "none"]
Precision = Literal["fp32", "bf16", "fp16"]
Schedule = Literal["step", "cosine"]
LearningRateRule = Literal["none", "sqrt", "linear"]


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise UserError(sentence)


def _require_types(config: Any, where: str) -> None:
    """Each field holds what its annotation says: dataclasses do not look, and YAML brings anything."""
    for name, hint in _hints(type(config)).items():
        value = getattr(config, name)
        _require(_fits(value, hint), f"{where}{name} must be {_in_words(hint)}, not {value!r}.")


def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin in (Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if arguments[-1] is Ellipsis:
            return all(_fits(item, arguments[0]) for item in value)
        return len(value) == len(arguments) and all(map(_fits, value, arguments))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _in_words(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(arguments)}"
    if origin in (Union, types.UnionType):
        return " or ".join(_in_words(argument) for argument in arguments)
    if origin is tuple:
        kind = {int: "whole numbers", float: "numbers"}[arguments[0]]
        return f"a list of {kind}" if arguments[-1] is Ellipsis else f"a list of {len(arguments)} {kind}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return words.get(hint) or ("null" if hint is types.NoneType else "a group of fields")


def _as_hinted(value: Any, hint: Any) -> Any:
    """What YAML and JSON write otherwise than Python: tuples as lists, and in YAML 1.1 1e-4 is a text."""
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, str) and hint is float:
        try:
            return float(value)
        except ValueError:
            return value
    return value


@dataclass(frozen=True)
class BackboneConfig:
    """The network that makes the features.

    Attributes:
        name: a torchvision ResNet (resnet18/34/50/101, resnext101_32x8d/64x4d) or any timm model that
            gives features, by timm's name (`tf_efficientnet_lite0`).
        dilation: DC5: the last stage keeps stride 16 and dilates its convolutions by 2 (ResNets with
            bottlenecks, and those of timm's models that can).
        trainable_layers: how many stages learn, counted from the last one, 0 to 5 (the term is
            torchvision's). The paper's 3 freezes the stem and the first stage of a ResNet. Batch norm is
            always frozen.
        deformable_stages: stages, 2 to 5 for C2 to C5, whose 3x3 convolutions learn where to read (ResNets
            only). "ResNeXt-101 + DCN" in the paper's Table 3 is a resnext101 with stages 3, 4, 5.
    """

    name: str = "resnet50"
    dilation: bool = False
    trainable_layers: int = 3
    deformable_stages: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _require_types(self, "model.backbone.")
        _require(bool(self.name), "model.backbone.name is empty: name a torchvision ResNet or a timm model.")
        _require(
            0 <= self.trainable_layers <= 5,
            f"model.backbone.trainable_layers must be 0 to 5, not {self.trainable_layers}.",
        )
        _require(
            not (self.dilation and self.name in ("resnet18", "resnet34")),
            f"model.backbone.dilation needs bottleneck blocks (resnet50 or larger), {self.name} has none.",
        )
        stages = self.deformable_stages
        _require(
            len(set(stages)) == len(stages) and all(2 <= stage <= 5 for stage in stages),
            f"model.backbone.deformable_stages must be distinct stages from 2 to 5, not {list(stages)}.",
        )
        _require(
            not stages or self.name in TORCHVISION_RESNETS,
            f"model.backbone.deformable_stages works for {', '.join(TORCHVISION_RESNETS)}, not for "
            f"{self.name}.",
        )


@dataclass(frozen=True)
class ModelConfig:
    """A model, as a choice of parts; without a recipe Deformable DETR, R50.

    Attributes:
        num_classes: classes the model tells apart (91 in published COCO checkpoints, 80 names of COCO).
        neck: `projection` (one 1x1 convolution on the last feature map, DETR), `channel_mapper`
            (1x1 convolutions and group norm, further levels by strided 3x3 convolutions), or a pyramid on
            top of it: `fpn` or `bifpn` (the paper's Table 2).
        position: `sine` encoding (DETR), or `sine_half_pixel`: of pixel centres (Deformable DETR).
        attention: `dense` (every query looks at every token), `deformable` (at points on all levels) or
            `deformable_own_level` (at points on its own level, the paper's Table 2).
        queries: `static` (DETR), `reference_points` (learned points) or `proposals` (two stages).
        classification: `softmax` with a no-object class, or `sigmoid_focal`.
        num_queries: object queries Q, at most so many objects are found in an image.
        hidden_dim: channels C of tokens and queries. num_heads: attention heads M.
        num_levels: feature levels L. The last min(L, 3) stages of the backbone, further ones by
            stride-2 convolutions.
        num_points: points per head and level, K.
        encoder_layers, decoder_layers: how many. ffn_dim: hidden width of their feed-forward parts.
        dropout: in training, in every layer.
        decoder_norm: layer norm after each decoder layer's output (DETR has it).
        refine_references: iterative bounding box refinement.
        mask_invalid_proposals: keep padded and out-of-range tokens out of the first stage's top-k.
            The authors' code does not, so published checkpoints need False.
        nms_iou: of detections of one class that overlap by more than this (IoU), only the best is kept; null
            (the paper): all are kept. Two stages learn late to say each object once; this does not wait.
    """

    num_classes: int = 91
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    neck: Neck = "channel_mapper"
    position: Position = "sine_half_pixel"
    attention: Attention = "deformable"
    queries: QuerySource = "reference_points"
    classification: Classification = "sigmoid_focal"
    num_queries: int = 300
    hidden_dim: int = 256
    num_heads: int = 8
    num_levels: int = 4
    num_points: int = 4
    encoder_layers: int = 6
    decoder_layers: int = 6
    ffn_dim: int = 1024
    dropout: float = 0.1
    decoder_norm: bool = False
    refine_references: bool = False
    mask_invalid_proposals: bool = False
    nms_iou: float | None = None

    def __post_init__(self) -> None:
        _require_types(self, "model.")
        for name in ("num_classes", "num_queries", "hidden_dim", "num_heads", "num_levels", "num_points"):
            value = getattr(self, name)
            _require(value >= 1, f"model.{name} must be at least 1, not {value}.")
        _require(
            self.encoder_layers >= 0, f"model.encoder_layers must not be negative ({self.encoder_layers})."
        )
        _require(
            self.decoder_layers >= 1, f"model.decoder_layers must be at least 1, not {self.decoder_layers}."
        )
        _require(self.ffn_dim >= 1, f"model.ffn_dim must be at least 1, not {self.ffn_dim}.")
        _require(
            self.nms_iou is None or 0 < self.nms_iou <= 1,
            f"model.nms_iou must be above 0 and at most 1, or null, not {self.nms_iou}.",
        )
        _require(0.0 <= self.dropout < 1.0, f"model.dropout must be in [0, 1), not {self.dropout}.")
        _require(
            self.hidden_dim % self.num_heads == 0,
            f"model.hidden_dim ({self.hidden_dim}) must be divisible by model.num_heads ({self.num_heads}).",
        )
        _require(
            self.hidden_dim % 4 == 0,
            f"model.hidden_dim ({self.hidden_dim}) must be divisible by 4: the sine position encoding "
            "needs a sine and a cosine for x and for y.",
        )
        if self.neck == "projection" or self.attention == "dense":
            _require(
                self.num_levels == 1,
                f"model.num_levels is {self.num_levels}, but "
                + (
                    "model.neck=projection makes one level"
                    if self.neck == "projection"
                    else "dense attention reads one level"
                )
                + ": set model.num_levels to 1.",
            )
        if self.attention == "deformable_own_level":
            _require(
                self.queries != "proposals",
                "model.queries=proposals takes its queries from any level, but with "
                "model.attention=deformable_own_level each query has a fixed one: set "
                "model.attention=deformable.",
            )
        if self.attention != "dense":
            _require(
                self.queries != "static",
                "model.queries=static has no reference points to sample around: deformable attention "
                "needs model.queries=reference_points or proposals.",
            )
        if self.queries == "proposals":
            _require(
                self.classification == "sigmoid_focal",
                "model.queries=proposals ranks tokens by the logit of one class, which means nothing by "
                "itself under softmax: set model.classification=sigmoid_focal.",
            )
            _require(
                self.refine_references,
                "model.queries=proposals (two stages) needs model.refine_references=true: the proposals "
                "are boxes that the decoder refines.",
            )
            _require(
                self.num_levels <= 5,
                f"model.queries=proposals works with up to 5 levels, not {self.num_levels}: the base size "
                "of proposals doubles per level and leaves the image at the sixth.",
            )


@dataclass(frozen=True)
class DataConfig:
    """From files to the pixels that the model sees.

    Attributes:
        format: layout of the data set: `coco`, `voc`, `yolo`, or `auto`.
        image_size: short side in evaluation and prediction, pixels.
        max_size: the long side is at most this, also in training (the short one then becomes smaller).
        train_sizes: short sides to choose from in training (multi-scale).
        augmentation: `paper` (flip, resize, random crop, as DETR's), `light` (flip and resize, milder
            crop, for small data) or `none` (resize to `image_size` only).
        vertical_flip: light: also turn half of the pictures upside down, for those that have no up and down
            (microscopes, aerial pictures).
        crop_sizes: paper: short sides before the crop; crop_min, crop_max: sides of the crop.
        mean, std: normalisation of RGB in [0, 1], the backbone's own.
        strict: refuse data with problems instead of dropping broken boxes and saying so.
        max_pixels: images with more pixels are refused before they are decoded.
        num_workers: loader processes; 0 loads in the training process.
    """

    format: Literal["auto", "coco", "voc", "yolo"] = "auto"
    image_size: int = 800
    max_size: int = 1333
    train_sizes: tuple[int, ...] = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    augmentation: Augmentation = "paper"
    vertical_flip: bool = False
    crop_sizes: tuple[int, ...] = (400, 500, 600)
    crop_min: int = 384
    crop_max: int = 600
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    strict: bool = False
    max_pixels: int = 100_000_000
    num_workers: int = 2

    def __post_init__(self) -> None:
        _require_types(self, "data.")
        _require(self.image_size >= 32, f"data.image_size must be at least 32 pixels, not {self.image_size}.")
        _require(
            self.max_size >= self.image_size,
            f"data.max_size ({self.max_size}) must not be smaller than data.image_size ({self.image_size}).",
        )
        _require(
            len(self.train_sizes) > 0 and min(self.train_sizes) >= 32,
            f"data.train_sizes must hold sizes of at least 32 pixels, not {list(self.train_sizes)}.",
        )
        _require(
            1 <= self.crop_min <= self.crop_max,
            f"data.crop_min ({self.crop_min}) must be at least 1 and at most data.crop_max "
            f"({self.crop_max}).",
        )
        _require(
            len(self.crop_sizes) > 0 and min(self.crop_sizes) >= 1,
            f"data.crop_sizes must hold sizes of at least 1 pixel, not {list(self.crop_sizes)}.",
        )
        _require(self.max_pixels >= 1, f"data.max_pixels must be at least 1, not {self.max_pixels}.")
        _require(all(value > 0 for value in self.std), f"data.std must be positive, not {list(self.std)}.")
        _require(self.num_workers >= 0, f"data.num_workers must not be negative ({self.num_workers}).")


@dataclass(frozen=True)
class LossConfig:
    """Matching costs, loss weights; DETR's recipes set others.

    Attributes:
        class_cost, box_cost, giou_cost: weights of the matching cost.
        class_weight, box_weight, giou_weight: weights of the loss terms, in every layer.
        no_object_weight: weight of the no-object class (softmax only).
        focal_alpha, focal_gamma: focal loss and its matching cost (sigmoid_focal only).
        auxiliary: losses on every decoder layer, not just on the last.
    """

    class_cost: float = 2.0
    box_cost: float = 5.0
    giou_cost: float = 2.0
    class_weight: float = 2.0
    box_weight: float = 5.0
    giou_weight: float = 2.0
    no_object_weight: float = 0.1
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    auxiliary: bool = True

    def __post_init__(self) -> None:
        _require_types(self, "train.loss.")
        for name in ("class_cost", "box_cost", "giou_cost", "class_weight", "box_weight", "giou_weight"):
            value = getattr(self, name)
            _require(value >= 0, f"train.loss.{name} must not be negative ({value}).")
        _require(0 <= self.focal_alpha <= 1, "train.loss.focal_alpha must be in [0, 1].")
        _require(self.focal_gamma >= 0, f"train.loss.focal_gamma must not be negative ({self.focal_gamma}).")
        _require(
            self.class_cost + self.box_cost + self.giou_cost > 0,
            "train.loss: at least one of class_cost, box_cost and giou_cost must be positive.",
        )
        _require(0 < self.no_object_weight <= 1, "train.loss.no_object_weight must be in (0, 1].")


@dataclass(frozen=True)
class TrainConfig:
    """How a model learns (paper, section 5).

    Attributes:
        epochs, max_steps: the end of training: whichever comes first. A step is one update.
        batch_size: images per process and micro-batch. accumulate: micro-batches per update.
        lr: AdamW's learning rate at a total batch of `lr_batch_size` images; lr_backbone: the backbone's;
            lr_sampling_multiplier: factor for reference points and sampling offsets.
        lr_batch_size: the total batch (batch x accumulate x processes) that the rates are meant for.
        lr_rule: what another total batch does to the rates: nothing (`none`), `sqrt` or `linear`.
        schedule: `step` (times `lr_gamma` after each epoch in `lr_drop_epochs`) or `cosine` (to zero).
        lr_drop_epochs, lr_gamma: step: when, counted in epochs done, and by which factor.
        warmup_steps: linear warm-up, in updates.
        weight_decay: AdamW's, decoupled. clip_norm: largest L2 norm of the gradient, 0 for no clipping.
        ema_decay: exponential moving average of the weights, used in evaluation; 0 for none.
        precision: `fp32`, or autocast to `bf16` or `fp16`.
        seed: of everything random.
        backbone_weights: `imagenet`, a file, or null: where the backbone starts.
        evaluate_every, checkpoint_every: in epochs, and in updates (0: only after each epoch).
        log_every: updates between lines on the screen and in metrics.jsonl.
        activation_checkpointing: compute each encoder and decoder layer twice instead of keeping what it
            needs for its gradient: less memory, more time, the same result.
        report: write report.html into the run folder at the end.
        cache_features: compute the features of each image once, for a backbone that does not learn and
            images that are not augmented. cache_memory_gb, cache_disk_gb: their bounds, per process.
    """

    epochs: int = 50
    max_steps: int | None = None
    batch_size: int = 2
    accumulate: int = 1
    lr: float = 2e-4
    lr_backbone: float = 2e-5
    lr_sampling_multiplier: float = 0.1
    lr_rule: LearningRateRule = "none"
    lr_batch_size: int = 32
    schedule: Schedule = "step"
    lr_drop_epochs: tuple[int, ...] = (40,)
    lr_gamma: float = 0.1
    warmup_steps: int = 0
    weight_decay: float = 1e-4
    clip_norm: float = 0.1
    ema_decay: float = 0.0
    precision: Precision = "fp32"
    seed: int = 42
    backbone_weights: str | None = "imagenet"
    evaluate_every: int = 1
    checkpoint_every: int = 0
    log_every: int = 10
    activation_checkpointing: bool = False
    report: bool = True
    cache_features: bool = False
    cache_memory_gb: float = 2.0
    cache_disk_gb: float = 20.0
    loss: LossConfig = field(default_factory=LossConfig)

    def __post_init__(self) -> None:
        _require_types(self, "train.")
        _require(self.epochs >= 0, f"train.epochs must not be negative ({self.epochs}).")
        _require(
            self.max_steps is None or self.max_steps >= 0,
            f"train.max_steps must not be negative ({self.max_steps}).",
        )
        for name in ("batch_size", "accumulate", "lr_batch_size", "evaluate_every", "log_every"):
            value = getattr(self, name)
            _require(value >= 1, f"train.{name} must be at least 1, not {value}.")
        for name in ("lr", "lr_backbone", "lr_sampling_multiplier", "weight_decay", "clip_norm"):
            value = getattr(self, name)
            _require(value >= 0, f"train.{name} must not be negative ({value}).")
        for name in ("lr_gamma", "warmup_steps", "seed", "checkpoint_every"):
            value = getattr(self, name)
            _require(value >= 0, f"train.{name} must not be negative ({value}).")
        for name in ("cache_memory_gb", "cache_disk_gb"):
            value = getattr(self, name)
            _require(value >= 0, f"train.{name} must not be negative ({value}).")
        _require(0 <= self.ema_decay < 1, f"train.ema_decay must be in [0, 1), not {self.ema_decay}.")


@dataclass(frozen=True)
class RunConfig:
    """A recipe with its changes: all that a training run needs besides the data.

    Attributes:
        recipe: the name of the recipe that it started from.
    """

    recipe: str = "deformable_detr_r50"
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        _require_types(self, "")
        if self.train.cache_features:
            _require(
                self.model.backbone.trainable_layers == 0 or self.train.lr_backbone == 0,
                "train.cache_features needs a backbone that does not learn: set "
                "model.backbone.trainable_layers to 0.",
            )
            _require(
                self.data.augmentation == "none",
                "train.cache_features needs the same pixels in each epoch: set data.augmentation to none.",
            )


def to_dict(config: Any) -> dict[str, Any]:
    """Plain dictionaries and lists, ready for JSON or YAML."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, tuple | list):
            return [plain(item) for item in value]
        return value

    result: dict[str, Any] = plain(dataclasses.asdict(config))
    return result


def from_dict(cls: type[ConfigT], values: Mapping[str, Any], where: str = "") -> ConfigT:
    """The inverse of `to_dict`. Unknown fields are refused by name; missing ones take their defaults."""
    hints = _hints(cls)
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        path = f"{where}{name}"
        if name not in hints:
            raise UserError(f"unknown field {path}: known are {', '.join(sorted(hints))}.")
        hint = hints[name]
        if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
            arguments[name] = from_dict(hint, value, f"{path}.")  # type: ignore[arg-type]
        else:
            arguments[name] = _as_hinted(value, hint)
    return cls(**arguments)


def override(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """A copy of `config` with fields changed: `{"train.epochs": 12, "num_queries": 100}`.

    A name without a dot is looked up in model, data and train (and their parts), where each name is unique.
    All changes are made before the result is checked, so that their order does not matter.
    """
    values = to_dict(config)
    for name, value in changes.items():
        _set(values, _full_path(name).split("."), value, name)
    return from_dict(RunConfig, values)


def _set(values: dict[str, Any], path: list[str], value: Any, name: str) -> None:
    head, *rest = path
    if head not in values:
        raise UserError(f"unknown field {name}: there is no {head} among {', '.join(sorted(values))}.")
    if rest:
        if not isinstance(values[head], dict):
            raise UserError(f"unknown field {name}: {head} has no fields.")
        _set(values[head], rest, value, name)
    elif isinstance(values[head], dict) and isinstance(value, Mapping):
        for key, item in value.items():
            _set(values[head], [str(key)], item, f"{name}.{key}")
    else:
        values[head] = value


def _full_path(name: str) -> str:
    if "." in name or name in {item.name for item in dataclasses.fields(RunConfig)}:
        return name
    matches = [path for path in _leaf_paths(RunConfig, "") if path.split(".")[-1] == name]
    if len(matches) != 1:
        near = difflib.get_close_matches(
            name, [path.split(".")[-1] for path in _leaf_paths(RunConfig, "")], n=1
        )
        meant = f": did you mean {near[0]}?" if near else ": docs/configuration.md has the list."
        raise UserError(
            f"unknown field {name}{meant}"
            if not matches
            else f"the field name {name} is not unique, say one of {', '.join(matches)}."
        )
    return matches[0]


def _leaf_paths(cls: type, prefix: str) -> list[str]:
    paths = []
    for name, hint in _hints(cls).items():
        paths.append(f"{prefix}{name}")
        if dataclasses.is_dataclass(hint):
            paths += _leaf_paths(hint, f"{prefix}{name}.")  # type: ignore[arg-type]
    return paths


def read_config(path: Path, base: RunConfig) -> RunConfig:
    """`base` with the fields that a YAML file states.

    Raises:
        UserError: naming the file, and the field.
    """
    return with_file(base, path, read_yaml(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """The fields that a YAML file states. Raises UserError, naming the file."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"there is no file {path}: name a YAML file with fields of a configuration."
        ) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as a YAML configuration: {why}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no configuration: expected fields recipe, model, data or train.")
    return content


def with_file(base: RunConfig, path: Path, content: dict[str, Any]) -> RunConfig:
    """`base` with fields that were read from `path`, which a UserError names."""
    try:
        return override(base, content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error

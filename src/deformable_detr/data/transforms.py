"""Transforms of a training picture and its boxes to the model's input: resize, augment, normalise.

See specification §1.3, §1.4.

The transforms use the functions of torchvision.transforms.v2, which change a picture and its boxes in the
same way. The `v2` classes themselves draw from PyTorch's global generator; here every random number comes
from the generator that the caller passes, so that a training sample is a pure function of (seed, epoch,
index).

Letters: H, W are the size of the annotated picture; h, w that of the model's input; N is the number of
objects. Sizes are (H, W).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F
from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat

from ..config import Augmentation, DataConfig
from .preprocessing import input_size, normalised, resized, resized_size

TrainingTransform = Callable[[Image, Tensor, Tensor, np.random.Generator], tuple[Tensor, Tensor, Tensor]]

# The parameters of the "light" augmentation
LIGHT_CROP_SIDE = (0.6, 1.0)  # minimum and maximum share of each side that a crop keeps
LIGHT_MIN_VISIBLE = 0.25  # a crop keeps a box only if more than this share of its area is left
LIGHT_JITTER = 0.2  # maximum relative change of brightness, contrast and saturation


def training_transform(config: DataConfig) -> TrainingTransform:
    """Return the augmentation that `config.augmentation` names.

    Returns:
        transform(picture, boxes_xyxy, labels, generator) → (pixels, boxes_cxcywh, labels). The arguments
        are an RGB picture, and for its N objects boxes_xyxy (N, 4) in pixels and labels (N,) int64. The
        results are normalised pixels (3, h, w), boxes_cxcywh (N', 4) float32 as fractions of (w, h), and
        labels (N',).
        Boxes are clipped to the picture, or to the part of it that a crop keeps, and dropped if no area is
        left there; the "light" crop also drops those of which at most a quarter is left. So N' ≤ N, and N'
        may be 0. The same state of `generator` gives the same result; no other source of randomness is used.
    """
    return partial(_transform_for_training, config=config)


@dataclass(frozen=True)
class _Annotated:
    """A picture and its N objects, which are transformed together.

    `boxes`: (N, 4) xyxy, in pixels of the picture. `labels`: (N,) int64 class indices.
    """

    picture: Image
    boxes: BoundingBoxes
    labels: Tensor

    @property
    def size(self) -> tuple[int, int]:
        width, height = self.picture.size
        return height, width

    def resized(self, size: tuple[int, int]) -> _Annotated:
        return replace(self, picture=resized(self.picture, size), boxes=F.resize(self.boxes, list(size)))

    def flipped(self) -> _Annotated:
        return replace(self, picture=F.horizontal_flip(self.picture), boxes=F.horizontal_flip(self.boxes))

    def upside_down(self) -> _Annotated:
        return replace(self, picture=F.vertical_flip(self.picture), boxes=F.vertical_flip(self.boxes))

    def cropped(self, top: int, left: int, size: tuple[int, int], min_visible: float = 0.0) -> _Annotated:
        """Return the part of the picture that begins at (top, left) and has `size` (H, W).

        Boxes are shifted and clipped; a box is dropped unless more than the share `min_visible` of its area
        is left.
        """
        boxes = F.crop(self.boxes, top, left, *size)
        keep = _area(boxes) > min_visible * _area(self.boxes)
        return _Annotated(
            F.crop(self.picture, top, left, *size),
            BoundingBoxes(boxes[keep], format=BoundingBoxFormat.XYXY, canvas_size=size),
            self.labels[keep],
        )


def _area(boxes_xyxy: Tensor) -> Tensor:
    # torchvision's sanitize_bounding_boxes only checks minimum sizes; the published rule is x1 > x0, y1 > y0
    x0, y0, x1, y1 = boxes_xyxy.as_subclass(Tensor).unbind(-1)
    return (x1 - x0).clamp(min=0) * (y1 - y0).clamp(min=0)


def _transform_for_training(
    picture: Image, boxes_xyxy: Tensor, labels: Tensor, generator: np.random.Generator, config: DataConfig
) -> tuple[Tensor, Tensor, Tensor]:
    width, height = picture.size
    boxes = BoundingBoxes(
        boxes_xyxy.to(torch.float32), format=BoundingBoxFormat.XYXY, canvas_size=(height, width)
    )
    # "cropping" to the whole picture clips the boxes to it and drops those without area
    scene = _Annotated(picture, boxes, labels).cropped(0, 0, (height, width))
    scene = _AUGMENTATIONS[config.augmentation](scene, generator, config)

    height, width = scene.size
    boxes_cxcywh = F.convert_bounding_box_format(scene.boxes, new_format=BoundingBoxFormat.CXCYWH)
    boxes_cxcywh = boxes_cxcywh.as_subclass(Tensor) / torch.tensor([width, height, width, height])
    return torch.from_numpy(normalised(scene.picture, config)), boxes_cxcywh, scene.labels


def _happens(generator: np.random.Generator, probability: float) -> bool:
    return bool(generator.random() < probability)


def _random_train_size(scene: _Annotated, generator: np.random.Generator, config: DataConfig) -> _Annotated:
    short = int(generator.choice(config.train_sizes))
    return scene.resized(input_size(scene.size, config, short))


def _paper(scene: _Annotated, generator: np.random.Generator, config: DataConfig) -> _Annotated:
    """Augment as DETR and Deformable DETR do.

    A picture is flipped horizontally with probability 0.5. With the same probability, its short side is
    resized to one of `config.crop_sizes`, and a random part is cropped whose sides are between
    `config.crop_min` and `config.crop_max` pixels; a side shorter than `config.crop_min` is kept whole. In
    the end, the short side is always resized to one of `config.train_sizes`, or to less if the long side
    would exceed `config.max_size`.
    """
    if _happens(generator, 0.5):
        scene = scene.flipped()
    if _happens(generator, 0.5):
        short = int(generator.choice(config.crop_sizes))
        scene = scene.resized(resized_size(scene.size, short))
        # a side shorter than crop_min is kept whole, which happens if crop_sizes contains such sizes
        height, width = (
            int(generator.integers(min(side, config.crop_min), min(side, config.crop_max) + 1))
            for side in scene.size
        )
        scene = _random_crop(scene, (height, width), generator)
    return _random_train_size(scene, generator, config)


def _light(scene: _Annotated, generator: np.random.Generator, config: DataConfig) -> _Annotated:
    """Augment small data sets and small pictures mildly, so that most objects stay in the picture.

    A picture is flipped horizontally, flipped vertically (only if `config.vertical_flip` is true), and
    cropped to at least 60 % of each side, each with probability 0.5; the crop drops boxes of which no more
    than a quarter is left. The short side is always resized to one of `config.train_sizes`, or to less if the
    long side would exceed `config.max_size`, and brightness, contrast and saturation are changed by up to
    20 % each.
    """
    if _happens(generator, 0.5):
        scene = scene.flipped()
    if config.vertical_flip and _happens(generator, 0.5):
        scene = scene.upside_down()
    if _happens(generator, 0.5):
        height, width = (max(1, round(side * generator.uniform(*LIGHT_CROP_SIDE))) for side in scene.size)
        scene = _random_crop(scene, (height, width), generator, LIGHT_MIN_VISIBLE)
    scene = _random_train_size(scene, generator, config)
    picture = scene.picture
    for adjust in (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation):
        picture = adjust(picture, float(generator.uniform(1 - LIGHT_JITTER, 1 + LIGHT_JITTER)))
    return replace(scene, picture=picture)


def _none(scene: _Annotated, generator: np.random.Generator, config: DataConfig) -> _Annotated:
    return scene.resized(input_size(scene.size, config))


def _random_crop(
    scene: _Annotated, size: tuple[int, int], generator: np.random.Generator, min_visible: float = 0.0
) -> _Annotated:
    top, left = (int(generator.integers(0, old - new + 1)) for old, new in zip(scene.size, size, strict=True))
    return scene.cropped(top, left, size, min_visible)


_AUGMENTATIONS: dict[Augmentation, Callable[[_Annotated, np.random.Generator, DataConfig], _Annotated]] = {
    "paper": _paper,
    "light": _light,
    "none": _none,
}

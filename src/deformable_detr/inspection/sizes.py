"""Object sizes as the model sees them, in pixels after the recipe's resizing and in cells of feature levels.

An object's size is the square root of its box's area. Crowds are left out, because models are not trained on
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ..config import DataConfig, RunConfig
from ..data.preprocessing import input_size
from ..data.records import ImageRecord
from ..models.build import level_strides
from ..words import NOT_AVAILABLE

QUANTILES = {"min": 0.0, "5 %": 0.05, "25 %": 0.25, "half": 0.5, "75 %": 0.75, "95 %": 0.95, "max": 1.0}
BIN_EDGES = (1, 2, 4, 8, 16)  # in cells of the finest level


@dataclass(frozen=True)
class RecipeView:
    """The settings of a recipe that determine how its model sees objects.

    Attributes:
        recipe: the name of the recipe.
        data: the settings of the preprocessing, which determine the resizing.
        strides: the side of a cell of each level in pixels of the resized picture, finest level first.
        num_queries: the number of object queries of the model.
    """

    recipe: str
    data: DataConfig
    strides: tuple[int, ...]
    num_queries: int

    @classmethod
    def from_config(cls, config: RunConfig) -> RecipeView:
        return cls(config.recipe, config.data, level_strides(config.model), config.model.num_queries)

    def to_dict(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe,
            "image_size": self.data.image_size,
            "max_size": self.data.max_size,
            "train_sizes": list(self.data.train_sizes),
            "strides": list(self.strides),
            "num_queries": self.num_queries,
        }


@dataclass(frozen=True)
class ObjectSizes:
    """The distribution of the objects' sizes in pixels after resizing.

    Attributes:
        count: the number of objects.
        quantiles: the minimum, the 5 %, 25 %, 50 %, 75 % and 95 % quantiles and the maximum; zeros if there
            are no objects.
        bins: the number of objects in each range of sizes, in cells of the finest level: below 1, from 1 to
            below 2, …, at least 16 (`BIN_EDGES`).
    """

    count: int
    quantiles: tuple[float, ...]
    bins: tuple[int, ...]

    @classmethod
    def from_pixels(cls, pixels: np.ndarray, finest_stride: int) -> ObjectSizes:
        if len(pixels) == 0:
            return cls(0, (0.0,) * len(QUANTILES), (0,) * (len(BIN_EDGES) + 1))
        bins = np.bincount(np.digitize(pixels / finest_stride, BIN_EDGES), minlength=len(BIN_EDGES) + 1)
        return cls(
            len(pixels),
            tuple(np.quantile(pixels, list(QUANTILES.values())).tolist()),
            tuple(bins.tolist()),
        )

    @property
    def below_cell(self) -> float:
        """The share of objects smaller than a cell of the finest level; 0 if there are no objects."""
        return self.bins[0] / max(1, self.count)

    def to_dict(self, strides: Sequence[int]) -> dict[str, Any]:
        def named(divisor: int) -> dict[str, float]:
            values = (round(value / divisor, 3) for value in self.quantiles)
            return dict(zip(QUANTILES, values, strict=True))

        return {
            "count": self.count,
            "pixels": named(1),
            "cells": [{"stride": stride, **named(stride)} for stride in strides],
            "cells_of_finest_level": dict(zip(bin_names(), self.bins, strict=True)),
            "share_below_a_cell": self.below_cell,
        }


def spread(sizes: ObjectSizes, stride: int, decimals: int) -> list[str]:
    """Format the quantiles in cells of `stride` pixels for a table; each is n/a if there are no objects."""
    if not sizes.count:
        return [NOT_AVAILABLE] * len(QUANTILES)
    return [f"{value / stride:.{decimals}f}" for value in sizes.quantiles]


def bin_names() -> tuple[str, ...]:
    middle = (f"{low} to {high}" for low, high in pairwise(BIN_EDGES))
    return (f"under {BIN_EDGES[0]}", *middle, f"{BIN_EDGES[-1]} and more")


def sizes_of(images: Sequence[ImageRecord], data: DataConfig) -> np.ndarray:
    """Return the size of each object in pixels, after its picture has been resized as for evaluation.

    A size is the square root of the area of an object's box. The result is (number of objects,), in the order
    of the images and their objects. Crowds are left out.

    Args:
        images: the images; with none, the result is empty.
        data: the configuration of the preprocessing.
    """
    sizes = [np.zeros(0)]
    for image in images:
        height, width = image.size
        new_height, new_width = input_size(image.size, data)
        sides = image.boxes_xyxy[~image.crowd]
        sides = sides[:, 2:] - sides[:, :2]
        sizes.append(np.sqrt(sides[:, 0] * sides[:, 1] * (new_height / height) * (new_width / width)))
    return np.concatenate(sizes)

"""The transform of a picture to the model's input in evaluation and prediction, as a tensor.

It does not import torchvision, which takes a second, so that prediction starts without it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from PIL.Image import Image
from torch import Tensor

from ..config import DataConfig
from .preprocessing import model_input

EvaluationTransform = Callable[[Image], Tensor]


def evaluation_transform(config: DataConfig) -> EvaluationTransform:
    """Return the transform of an RGB picture (H, W) to normalised float pixels (3, h, w).

    `input_size` of the module preprocessing determines h and w.
    """
    return partial(_transform, config=config)


def _transform(picture: Image, config: DataConfig) -> Tensor:
    return torch.from_numpy(model_input(picture, config))

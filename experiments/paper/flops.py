"""Multiply-adds of a model, as the paper's FLOPs columns count them (Table 1; specification §9.2).

The papers' "FLOPs" are multiply-adds, half of what `torch.utils.flop_counter.FlopCounterMode` counts. The
count includes convolutions, matrix products (also those inside dense attention), and samples of deformable
attention and convolution, but nothing elementwise. The model really runs, but on PyTorch's meta device, on
which tensors have shapes and no numbers.

The published numbers are means over pictures of COCO val2017, resized as in evaluation.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
import torchvision  # noqa: F401  brings torch.ops.torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from deformable_detr.config import DataConfig, ModelConfig
from deformable_detr.data.preprocessing import input_size
from deformable_detr.data.records import Split
from deformable_detr.models import DetectionModel, build_model
from deformable_detr.ops.flop_formulas import REFERENCE_FORMULAS
from deformable_detr.structures import ImageBatch

Size = tuple[int, int]

# A data set's sizes are represented by this many quantiles; counting takes a second for each.
NUM_SIZES = 8


def typical_sizes(split: Split, data: DataConfig, number: int = NUM_SIZES) -> tuple[Size, ...]:
    """Return the sizes (height, width) that represent a split, as the model sees them: quantiles of the area.

    All are landscape, because a rotated picture costs the same.
    """
    sizes = [input_size(image.size, data) for image in split.images]
    ordered = sorted(((min(size), max(size)) for size in sizes), key=math.prod)
    number = min(number, len(ordered))
    return tuple(ordered[(2 * index + 1) * len(ordered) // (2 * number)] for index in range(number))


def mean_multiply_adds(config: ModelConfig, sizes: Sequence[Size]) -> float:
    """Return the mean multiply-adds of one picture over these sizes (height, width)."""
    model = model_without_numbers(config)
    return mean_over(sizes, lambda size: multiply_adds_of_model(model, size))


def mean_over(sizes: Sequence[Size], count: Callable[[Size], int]) -> float:
    """Return the mean of `count`, which is called once for each different size."""
    return sum(count(size) * times for size, times in Counter(sizes).items()) / len(sizes)


@cache
def model_without_numbers(config: ModelConfig) -> DetectionModel:
    """Build the model on the meta device, for counting."""
    with torch.device("meta"):
        return build_model(config).eval().requires_grad_(False)


def multiply_adds_of_model(model: nn.Module, size: Size) -> int:
    """Count the multiply-adds of one picture of `size` (height, width) on the device of the model."""
    device = next(model.parameters()).device
    batch = ImageBatch(
        torch.empty(1, 3, *size, device=device), torch.zeros(1, *size, dtype=torch.bool, device=device)
    )
    return count_multiply_adds(lambda: model(batch))


def count_multiply_adds(computation: Callable[[], Any]) -> int:
    """Count the multiply-adds of `computation`, without gradients."""
    formulas = {**REFERENCE_FORMULAS, torch.ops.torchvision.deform_conv2d: _deform_conv_flops}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        computation()
    result: int = counter.get_total_flops() // 2
    return result


def _deform_conv_flops(
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    *_: Any,
    out_shape: Sequence[int],
    **__: Any,
) -> int:
    """Return the FLOPs of a deformable convolution, two for each multiply-add.

    They are those of a plain convolution, plus five multiply-adds for each sample, one of which is the
    modulation.
    """
    places = out_shape[0] * math.prod(out_shape[2:])
    taps = math.prod(weight_shape[2:])
    return 2 * places * taps * (weight_shape[0] * weight_shape[1] + 5 * input_shape[1])

"""Create detectors: from a file or a folder, or untrained from a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .. import checkpoint as checkpoints
from ..config import DataConfig, ModelConfig
from ..config import recipe as recipe_of
from ..detections import ClassTable
from ..errors import UserError
from . import exported
from .detector import Detector

if TYPE_CHECKING:
    import torch

    from ..checkpoint import Checkpoint


def load(
    model: str | Path,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    *,
    max_pixels: int | None = None,
) -> Detector:
    """Load a detector.

    Args:
        model: a run folder, a checkpoint folder, an authors' .pth file, a transformers folder or hub id, an
            exported .onnx or .xml file, or `demo`, the bundled model.
        device: `auto` (CUDA if there is a GPU, otherwise the CPU), `cpu`, `cuda`, `cuda:1`, … Exported files
            run on the CPU.
        dtype: the type in which the model computes: `fp32` (or None), `bf16` or `fp16`. The weights of
            `detector.model` stay float32. An exported file computes in the type in which it was exported.
        max_pixels: the maximum H·W of a picture before resizing; None means the limit in the configuration of
            the model's preprocessing.

    Raises:
        UserError: if there is no such model, it cannot be read, a library that it needs is missing, the
            device does not exist or does not compute in `dtype`, or `max_pixels` is not positive.
    """
    if max_pixels is not None and max_pixels < 1:
        raise UserError(f"max_pixels must be at least 1, not {max_pixels}.")
    if exported.is_exported(model):
        found = exported.load(model, device, dtype)
        detector = Detector(found, found.backend)
    else:
        from .devices import choose_device

        choose_device(device)  # refuses a wrong name before the weights are read
        checkpoint = checkpoints.load(model)
        checkpoint.model.eval()
        detector = Detector.of(checkpoint, device, dtype)
    if max_pixels is not None:
        detector.data = replace(detector.data, max_pixels=max_pixels)
    return detector


def create(
    recipe: str,
    num_classes: int = 91,
    classes: Sequence[str] | None = None,
    backbone_weights: str | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
) -> Detector:
    """Create an untrained detector.

    Args:
        recipe: a name in `recipes.RECIPES`.
        num_classes: the number of classes if they have no names; 91 means COCO's classes and unused ids. This
            argument is ignored if `classes` is given.
        classes: the names of the classes; None means COCO's for 91 classes, otherwise "class 0", …
        backbone_weights: None (random), `imagenet`, or the path of a .safetensors or .pth file.
        device, dtype: as for `load`.

    Raises:
        UserError: if the recipe is unknown, `num_classes` is less than 1, `classes` is not a list of distinct
            names, the weights cannot be loaded, or the device does not exist or does not compute in `dtype`.
    """
    run = recipe_of(recipe)
    if classes is not None:
        _check_names(classes)
    table = (
        ClassTable.from_names(classes) if classes is not None else checkpoints.class_table_for(num_classes)
    )
    return Detector.of(new_checkpoint(run.model, table, run.data, recipe, backbone_weights), device, dtype)


def new_checkpoint(
    model_config: ModelConfig,
    classes: ClassTable,
    data: DataConfig,
    recipe: str,
    backbone_weights: str | None,
) -> Checkpoint:
    """Return a checkpoint with an untrained model for these classes, in evaluation mode.

    `backbone_weights` is as for `create`.

    Raises:
        UserError: if there are no classes, timm has no such backbone, the backbone does not support the
            configuration, or the weights cannot be loaded.
    """
    from ..models import build_model

    config = replace(model_config, num_classes=len(classes))
    model = build_model(config).eval()
    if backbone_weights is not None:
        model.backbone.load_pretrained(backbone_weights)
    return checkpoints.Checkpoint(model=model, config=config, classes=classes, data=data, recipe=recipe)


def _check_names(classes: Sequence[str]) -> None:
    if isinstance(classes, str):
        raise UserError(f'classes must be a list of names, classes=["{classes}"], not {classes!r}.')
    if not classes or not all(isinstance(name, str) and name.strip() for name in classes):
        raise UserError(f"classes must be a list of at least one name, each a string, not {list(classes)!r}.")
    repeated = sorted({name for name in classes if list(classes).count(name) > 1})
    if repeated:
        raise UserError(f"classes must differ from each other: {', '.join(repeated)} is there twice.")

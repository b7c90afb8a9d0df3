"""The models and training updates that the steps use, ours and transformers'."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import deformable_detr as dd
from deformable_detr.checkpoint import transformers_format
from deformable_detr.classification import build_classification
from deformable_detr.config import recipe as recipe_of
from deformable_detr.inference.convolutions import fastest_layout
from deformable_detr.loss import SetCriterion
from deformable_detr.models.activation_checkpointing import checkpoint_activations
from deformable_detr.structures import DetectorOutput, ImageBatch, Target
from deformable_detr.training.optimisation import adamw, parameter_groups
from deformable_detr.training.replica import replica_for_training

OBJECTS_PER_IMAGE = 7
PRECISIONS: dict[str, torch.dtype | None] = {
    "fp32": None,
    "tf32": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}

Update = Callable[[], Tensor]  # one update of training, which returns its loss on the device
OurUpdate = Callable[..., Tensor]  # the same, on the images of a batch if one is passed


@contextmanager
def precision(name: str, device: torch.device) -> Iterator[None]:
    """Run the block in fp32 (without any TF32), tf32, bf16 or fp16 (autocast, with the rest in TF32). This
    is for inference: autocast caches no converted weights, which a CUDA graph would read after they are
    freed."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name != "fp32"
    dtype = PRECISIONS[name]
    try:
        with nullcontext() if dtype is None else torch.autocast(device.type, dtype, cache_enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def detector(recipe: str, num_classes: int = 91, seed: int = 0) -> dd.Detector:
    """Return a recipe's detector on the CPU with random weights. With those of a new model, boxes and
    sampling offsets would not depend on the picture."""
    torch.manual_seed(seed)
    made = dd.create(recipe, num_classes=num_classes, device="cpu")
    with torch.no_grad():
        for name, parameter in made.model.named_parameters():
            if not name.startswith("backbone."):
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
    made.model.eval()
    return made


def images(size: tuple[int, int], batch: int, device: torch.device, seed: int = 0) -> ImageBatch:
    generator = torch.Generator().manual_seed(seed)
    return ImageBatch.from_images([torch.randn(3, *size, generator=generator) for _ in range(batch)]).to(
        device
    )


def targets(batch: int, num_classes: int, device: torch.device, seed: int = 0) -> tuple[Target, ...]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number in range(batch):
        centres = torch.rand(OBJECTS_PER_IMAGE, 2, generator=generator) * 0.6 + 0.2
        sides = torch.rand(OBJECTS_PER_IMAGE, 2, generator=generator) * 0.3 + 0.05
        labels = torch.randint(0, num_classes, (OBJECTS_PER_IMAGE,), generator=generator)
        made.append(Target(labels, torch.cat([centres, sides], dim=1), number).to(device))
    return tuple(made)


def tensors_of(output: DetectorOutput) -> dict[str, Tensor]:
    last = output.predictions[-1]
    return {"logits": last.logits.float(), "boxes": last.boxes_cxcywh.float()}


class Plain(nn.Module):
    """A wrapper of our model that takes and returns plain tensors, for compilers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        last = self.model(ImageBatch(pixels, mask)).predictions[-1]
        return last.logits, last.boxes_cxcywh


def transformers_model(made: dd.Detector) -> Any:
    """Return transformers' model with the weights of `made`, on the CPU."""
    import transformers
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        transformers_format.save(path, made.checkpoint)
        return transformers.AutoModelForObjectDetection.from_pretrained(path).eval()


# ---- Updates of training -------------------------------------------------------------------------


def our_update(
    recipe: str,
    size: tuple[int, int],
    batch: int,
    device: torch.device,
    dtype: torch.dtype | None,
    *,
    checkpointed: bool = False,
) -> OurUpdate:
    """Return an update as in `train`, with the losses of every layer, a clipped gradient and AdamW.

    The same images are used each time unless others are passed, so the loading of data is not included.
    """
    config = recipe_of(recipe)
    settings = replace(config.train, backbone_weights=None)
    torch.manual_seed(0)
    model = dd.create(recipe, device="cpu").model.to(device)
    model.backbone.to(memory_format=fastest_layout(model.backbone, device))
    criterion = SetCriterion(build_classification(model_config := config.model, settings.loss), settings.loss)
    optimizer = adamw(parameter_groups(model, settings), settings)
    if checkpointed:
        checkpoint_activations(model)
    learner = replica_for_training(model, device).train()
    pixels, objects = images(size, batch, device), targets(batch, model_config.num_classes, device)

    def update(batch: ImageBatch = pixels) -> Tensor:
        with nullcontext() if dtype is None else torch.autocast(device.type, dtype):
            output = learner(batch)
        losses = criterion(output, objects)
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        return losses.total.detach()

    return update


def transformers_update(
    recipe: str, size: tuple[int, int], batch: int, device: torch.device, dtype: torch.dtype | None
) -> Update:
    """Return an update of transformers' model, with its own losses and the optimizer that its users would
    create."""
    settings = recipe_of(recipe).train
    torch.manual_seed(0)
    made = dd.create(recipe, device="cpu")
    model = transformers_model(made).to(device)
    model.config.auxiliary_loss = True
    model.train()
    batch_of_images = images(size, batch, device)
    labels = [
        {"class_labels": target.labels, "boxes": target.boxes_cxcywh}
        for target in targets(batch, made.config.num_classes, device)
    ]
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=settings.lr, weight_decay=settings.weight_decay)
    mask = (~batch_of_images.mask).long()

    def update() -> Tensor:
        with nullcontext() if dtype is None else torch.autocast(device.type, dtype):
            loss: Tensor = model(pixel_values=batch_of_images.pixels, pixel_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, settings.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return update

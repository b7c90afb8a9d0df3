"""The paper's baseline, Faster R-CNN with an FPN (Table 1), built on torchvision's implementation.

torchvision's model is combined with this package's data, augmentation, backbone, logging and evaluation. It
has a separate training loop in one process, with its usual optimizer, SGD with momentum, and with losses that
the model computes itself. Like those of other runs, its folder has `config.yaml`, `metrics.jsonl` and
`training_state.pt`, but no checkpoint folder.
"""

from __future__ import annotations

import pickle
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from rich.console import Console
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from deformable_detr.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from deformable_detr.checkpoint import Checkpoint
from deformable_detr.config import RunConfig, TrainConfig, to_dict
from deformable_detr.data.formats import read_split
from deformable_detr.data.loading import MicroBatch, steps_per_epoch, training_loader
from deformable_detr.detections import ClassTable
from deformable_detr.errors import NonFiniteError, UserError
from deformable_detr.evaluation import evaluate
from deformable_detr.files import DAMAGED_FILE_ERRORS, replacing, write_text
from deformable_detr.inference.detector import Detector
from deformable_detr.inference.devices import choose_device
from deformable_detr.inference.torch_backends import TorchBackend
from deformable_detr.models import DetectionModel
from deformable_detr.models.backbone import Backbone, build_backbone
from deformable_detr.run_folder.log import TrainingLog, note_start
from deformable_detr.run_folder.names import RUN_CONFIG_FILE, STATE_FILE
from deformable_detr.structures import DetectorOutput, ImageBatch, Predictions, Target
from deformable_detr.training.optimisation import batch_size_factor, learning_rate_factor
from deformable_detr.training.settings import describe_data
from deformable_detr.words import one_line

from .flops import Size, count_multiply_adds, mean_over
from .rows import Row, Scale, count_parameters

NUM_STAGES = 4  # C2 to C5
DETECTIONS = 100
PROPOSALS = 1000  # per picture, in evaluation: torchvision's default
NO_LOGIT = -30.0  # the logit of all classes other than that of a detection


class FasterRcnn(nn.Module):
    """Faster R-CNN with this package's interface: it takes an `ImageBatch` and returns a `DetectorOutput`.

    Each of its hundred detections becomes the prediction of one query, with the logit of its score.
    """

    def __init__(self, config: RunConfig, num_classes: int):
        super().__init__()
        self.num_classes = num_classes
        data, dim = config.data, config.model.hidden_dim
        # Anchors of 32 to 512 pixels are meant for pictures of 800 pixels.
        sides = [max(4, round(side * data.image_size / 800)) for side in (32, 64, 128, 256, 512)]
        self.network = FasterRCNN(
            _Pyramid(build_backbone(config.model.backbone, NUM_STAGES), dim),
            num_classes=num_classes + 1,  # 0 is the background
            min_size=data.image_size,
            max_size=data.max_size,
            image_mean=[0.0] * 3,  # pictures are already normalised and resized
            image_std=[1.0] * 3,
            rpn_anchor_generator=AnchorGenerator(tuple((side,) for side in sides), ((0.5, 1.0, 2.0),) * 5),
            box_detections_per_img=DETECTIONS,
            _skip_resize=True,
        )

    def forward(self, batch: ImageBatch) -> DetectorOutput:
        found = self.network(_unpadded(batch))
        logits = batch.pixels.new_full((len(batch), DETECTIONS, self.num_classes), NO_LOGIT)
        boxes = batch.pixels.new_zeros(len(batch), DETECTIONS, 4)
        for index, (each, (height, width)) in enumerate(zip(found, _sizes(batch), strict=True)):
            rows = torch.arange(len(each["scores"]), device=logits.device)
            logits[index, rows, each["labels"] - 1] = each["scores"].logit(eps=1e-6)
            boxes[index, rows] = xyxy_to_cxcywh(each["boxes"]) / boxes.new_tensor([width, height] * 2)
        return DetectorOutput((Predictions(logits, boxes),))

    def losses(self, batch: ImageBatch, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Return the losses of proposals and boxes by torchvision's names, in training mode."""
        given = []
        for target, (height, width) in zip(targets, _sizes(batch), strict=True):
            boxes = cxcywh_to_xyxy(target.boxes_cxcywh)
            boxes = boxes * boxes.new_tensor([width, height] * 2)
            kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
            given.append({"boxes": boxes[kept], "labels": target.labels[kept] + 1})
        losses: dict[str, Tensor] = self.network(_unpadded(batch), given)
        return losses


class _Pyramid(nn.Module):
    """An FPN on C2 to C5, with torchvision's names of levels."""

    def __init__(self, backbone: Backbone, dim: int):
        super().__init__()
        self.backbone = backbone
        self.fpn = FeaturePyramidNetwork(list(backbone.channels), dim, LastLevelMaxPool())
        self.out_channels = dim

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        maps = self.backbone(pixels)
        levels: dict[str, Tensor] = self.fpn(OrderedDict((str(i), each) for i, each in enumerate(maps)))
        return levels


def _sizes(batch: ImageBatch) -> list[Size]:
    """Return (height, width) of each picture without its padding."""
    heights, widths = (~batch.mask[:, :, 0]).sum(1).tolist(), (~batch.mask[:, 0, :]).sum(1).tolist()
    return list(zip(heights, widths, strict=True))


def _unpadded(batch: ImageBatch) -> list[Tensor]:
    return [
        pixels[:, :height, :width]
        for pixels, (height, width) in zip(batch.pixels, _sizes(batch), strict=True)
    ]


class FasterRcnnRow(Row):
    """The first row of Table 1."""

    def base(self) -> RunConfig:
        return RunConfig(
            recipe=self.recipe,
            train=TrainConfig(
                lr=0.02,
                lr_rule="linear",
                lr_batch_size=16,
                warmup_steps=500,
                clip_norm=0.0,
                batch_size=2,
            ),
        )

    def config(self, scale: Scale, epochs: int | None, seed: int) -> RunConfig:
        config = super().config(scale, epochs, seed)
        rate = self.base().train  # a rate for SGD, which is not converted from AdamW's
        train = replace(
            config.train, lr=rate.lr, lr_rule=rate.lr_rule, lr_batch_size=rate.lr_batch_size, ema_decay=0.0
        )
        return replace(config, train=train)

    def train(self, data: Path, config: RunConfig, folder: Path, device: str) -> None:
        train_faster_rcnn(data, config, folder, device)

    def parameters(self, config: RunConfig) -> int:
        return count_parameters(FasterRcnn(config, config.model.num_classes))

    def multiply_adds(self, config: RunConfig, sizes: Sequence[Size]) -> float:
        """Return the mean multiply-adds of one picture, for everything that is independent of its content.

        These are the backbone, the pyramid, the proposal head, and the box head on 1000 proposals. RoIAlign
        is not counted, as torchvision does not count it either.
        """
        with torch.device("meta"):
            model = FasterRcnn(config, config.model.num_classes).eval().requires_grad_(False)
        return mean_over(sizes, lambda size: _multiply_adds(model.network, size))

    def untrained(self, config: RunConfig, classes: ClassTable, device: str) -> Detector:
        return _detector(FasterRcnn(config, len(classes)).eval(), config, classes, choose_device(device))


def _multiply_adds(network: FasterRCNN, size: Size) -> int:
    height, width = (-(-side // 32) * 32 for side in size)  # torchvision pads to multiples of 32

    def compute() -> None:
        levels = network.backbone(torch.empty(1, 3, height, width, device="meta"))
        network.rpn.head(list(levels.values()))
        heads = network.roi_heads
        pooled = torch.empty(PROPOSALS, network.backbone.out_channels, 7, 7, device="meta")
        heads.box_predictor(heads.box_head(pooled))

    return count_multiply_adds(compute)


def _detector(model: FasterRcnn, config: RunConfig, classes: ClassTable, device: torch.device) -> Detector:
    # A detector can use it like any other model: it takes pictures and returns predictions.
    same_interface = cast(DetectionModel, model)
    checkpoint = Checkpoint(
        model=same_interface,
        config=replace(config.model, num_classes=len(classes)),
        classes=classes,
        data=config.data,
        recipe=config.recipe,
    )
    return Detector(checkpoint, TorchBackend(same_interface, device, torch.float32))


def train_faster_rcnn(data: Path, config: RunConfig, folder: Path, device: str) -> Detector:
    """Train into `folder`, evaluating after each epoch; a stopped run continues after its last complete
    epoch."""
    settings = config.train
    split, val = read_split(data, "train"), read_split(data, "val")
    config = replace(config, model=replace(config.model, num_classes=len(split.classes)))
    torch.manual_seed(settings.seed)
    model = FasterRcnn(config, len(split.classes))
    if settings.backbone_weights is not None:
        model.network.backbone.backbone.load_pretrained(settings.backbone_weights)
    detector = _detector(model, config, split.classes, choose_device(device))
    optimizer = torch.optim.SGD(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=settings.lr,
        momentum=0.9,
        weight_decay=settings.weight_decay,
    )
    steps = steps_per_epoch(len(split), settings.batch_size)
    first_epoch = _load_state(folder, model, optimizer)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / RUN_CONFIG_FILE, yaml.safe_dump(to_dict(config), sort_keys=False))
    note_start(
        folder,
        step=first_epoch * steps,
        device=next(model.parameters()).device,
        processes=1,
        data=describe_data(split, val),
    )
    with TrainingLog(
        folder,
        Console(),
        True,
        first_step=first_epoch * steps,
        closed_step=first_epoch * steps,
        last_step=settings.epochs * steps,
    ) as log:
        for epoch in range(first_epoch, settings.epochs):
            model.train()
            clock = time.perf_counter()
            loader = training_loader(
                split,
                config.data,
                batch_size=settings.batch_size,
                accumulate=1,
                seed=settings.seed,
                epoch=epoch,
            )
            for step, batch in enumerate(loader, start=epoch * steps):
                rate = settings.lr * batch_size_factor(settings, settings.batch_size)
                rate *= learning_rate_factor(settings, step, steps)
                losses = _update(model, optimizer, batch, rate)
                spent, clock = time.perf_counter() - clock, time.perf_counter()
                log.update(
                    epoch=epoch,
                    step=step + 1,
                    losses=losses,
                    rates={"base": rate},
                    images=settings.batch_size,
                    seconds=spent,
                    every=settings.log_every,
                )
            with log.paused():
                metrics = evaluate(detector, val, progress=False)
            log.epoch(epoch, (epoch + 1) * steps, metrics)
            _save_state(folder, model, optimizer, epoch + 1)
    return detector


def _update(
    model: FasterRcnn, optimizer: torch.optim.Optimizer, batch: MicroBatch, rate: float
) -> dict[str, float]:
    images, targets = batch
    device = next(model.parameters()).device
    for group in optimizer.param_groups:
        group["lr"] = rate
    losses = model.losses(images.to(device), [target.to(device) for target in targets])
    total = torch.stack(list(losses.values())).sum()
    if not torch.isfinite(total):
        ids = ", ".join(str(target.image_id) for target in targets)
        raise NonFiniteError(f"the loss of images {ids} is {total.item()}; lower the learning rate")
    optimizer.zero_grad()
    total.backward()
    optimizer.step()
    return {"loss": total.item(), **{name: loss.item() for name, loss in losses.items()}}


def _save_state(folder: Path, model: FasterRcnn, optimizer: torch.optim.Optimizer, epochs: int) -> None:
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epochs": epochs}
    with replacing(folder / STATE_FILE) as draft:
        torch.save(state, draft)


def _load_state(folder: Path, model: FasterRcnn, optimizer: torch.optim.Optimizer) -> int:
    """Load the state of a stopped run and return the number of finished epochs.

    Raises:
        UserError: if the state is damaged or belongs to another model.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        return 0
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return int(state["epochs"])
    except (pickle.UnpicklingError, *DAMAGED_FILE_ERRORS) as error:
        why = one_line(error).rstrip(".")
        raise UserError(f"{path} cannot be read ({why}): remove the folder and train again.") from error

"""Another backbone: plain strided convolutions in the place of a ResNet.

This is the whole command line, with one more backbone:

    python examples/another_backbone.py train DATA --recipe deformable_detr_lite \
        --model.backbone.name plain_convolutions --train.backbone_weights null --output runs/plain
    python examples/another_backbone.py predict runs/plain photos/ --output out

Letters: B batch, C channels of a map, H, W its size.
"""

from __future__ import annotations

import sys

from torch import Tensor, nn

from deformable_detr.cli.main import main
from deformable_detr.config import BackboneConfig
from deformable_detr.errors import UserError
from deformable_detr.models import register_backbone
from deformable_detr.models.backbone import Backbone

WIDTHS, STRIDES = (16, 32, 64, 128, 256), (2, 4, 8, 16, 32)


class PlainConvolutions(Backbone):
    """Five stages, each a 3x3 convolution of stride 2 with group norm and ReLU."""

    def __init__(self, config: BackboneConfig, num_maps: int):
        super().__init__()
        self.channels, self.strides = WIDTHS[-num_maps:], STRIDES[-num_maps:]
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.ReLU())
            for before, after in zip((3, *WIDTHS), WIDTHS, strict=False)
        )

    def forward(self, pixels: Tensor) -> list[Tensor]:
        maps = [pixels]  # (B, C, H, W)
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[-len(self.channels) :]

    def load_pretrained(self, source: str) -> None:
        raise UserError("plain_convolutions has no ImageNet weights: add --train.backbone_weights null.")

    def freeze(self, trainable_layers: int) -> None:
        self.stages[: len(self.stages) - trainable_layers].requires_grad_(False)


register_backbone("plain_convolutions", PlainConvolutions)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The paper's comparisons at a scale for CPUs: every recipe is reduced in the same way (docs/paper.md).

The reduction does not depend on the recipe: backbone, widths, layers, queries, pictures and schedule are the
same for DETR and Deformable DETR. The differences between recipes stay: levels, points, attention, neck,
query source, classification, refinement, DC5; and DETR's learning rate, which is half of Deformable DETR's as
in the papers, with a tenth of it for the backbone and for sampling offsets.

Pictures have a fifth of the papers' 800 pixels: an update with 4 of them takes half a second on one thread.
All numbers are stated here and do not follow changes to other recipes, because results are only comparable
among themselves.
"""

from __future__ import annotations

from dataclasses import replace

from deformable_detr.config import BackboneConfig, DataConfig, RunConfig
from deformable_detr.config.recipes import deformable_detr_r50

BACKBONE = BackboneConfig("tf_efficientnet_lite0", trainable_layers=2)
DATA = DataConfig(
    image_size=160,
    max_size=266,
    train_sizes=(140, 150, 160, 170, 180),
    augmentation="light",
    mean=(0.5, 0.5, 0.5),  # the normalisation of the backbone
    std=(0.5, 0.5, 0.5),
    num_workers=0,  # starting a worker takes more time than it saves in such a short epoch
)
BATCH_SIZE, LR = 4, 3.5e-4


def small(config: RunConfig) -> RunConfig:
    """Return `config` with a small backbone, small widths and small pictures."""
    published = config.train
    rate = published.lr / deformable_detr_r50().train.lr
    return replace(
        config,
        model=replace(
            config.model,
            backbone=replace(BACKBONE, dilation=config.model.backbone.dilation),
            num_queries=100,
            hidden_dim=128,
            encoder_layers=3,
            decoder_layers=3,
            ffn_dim=512,
            dropout=0.0,
        ),
        data=DATA,
        train=replace(
            published,
            batch_size=BATCH_SIZE,
            lr=LR * rate,
            lr_backbone=LR / 10 * rate,
            lr_batch_size=BATCH_SIZE,
            warmup_steps=100,
            ema_decay=0.998,
        ),
    )

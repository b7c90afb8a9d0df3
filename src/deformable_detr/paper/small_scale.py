"""The paper's comparisons for CPU cores: every recipe in small, all in the same way (docs/paper.md).

The reduction knows nothing of what is compared: backbone, widths, layers, queries, pictures and schedule
are the same for DETR and Deformable DETR. What tells the recipes apart stays: levels, points, attention,
neck, queries' source, classification, refinement, DC5; and DETR's learning rate, half of Deformable DETR's
as in the papers.

Pictures are seen at a fifth of the papers' 800 pixels: an update of 4 takes a second and less on one thread.
"""

from __future__ import annotations

from dataclasses import replace

from ..config import RunConfig
from ..recipes import deformable_detr_lite, deformable_detr_r50

IMAGE_SIZE, MAX_SIZE = 160, 266
TRAIN_SIZES = (140, 150, 160, 170, 180)


def small(config: RunConfig) -> RunConfig:
    """`config` with the backbone, widths and update rule of the lite recipe, on smaller pictures yet."""
    lite = deformable_detr_lite()
    rate = config.train.lr / deformable_detr_r50().train.lr
    return replace(
        config,
        model=replace(
            config.model,
            backbone=replace(lite.model.backbone, dilation=config.model.backbone.dilation),
            num_queries=lite.model.num_queries,
            hidden_dim=lite.model.hidden_dim,
            encoder_layers=lite.model.encoder_layers,
            decoder_layers=lite.model.decoder_layers,
            ffn_dim=lite.model.ffn_dim,
            dropout=lite.model.dropout,
        ),
        data=replace(
            lite.data,
            image_size=IMAGE_SIZE,
            max_size=MAX_SIZE,
            train_sizes=TRAIN_SIZES,
            num_workers=0,  # starting a worker takes longer than it saves in an epoch as short as these
        ),
        train=replace(
            lite.train,
            epochs=config.train.epochs,
            lr=lite.train.lr * rate,
            lr_backbone=lite.train.lr_backbone * rate,
            schedule=config.train.schedule,
            lr_drop_epochs=config.train.lr_drop_epochs,
            loss=config.train.loss,
            seed=config.train.seed,
        ),
    )

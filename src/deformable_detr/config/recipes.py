"""The recipes: one function per row of the paper's tables, and some later ones. Most build on another recipe.

A recipe is a complete `RunConfig`: model, data and training. Published results are AP on COCO val2017,
unless a recipe says test-dev (specification §10, §12). To train with a recipe, run

    deformable-detr train DATA --recipe NAME --output runs/NAME
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..errors import UserError
from .backbone import LITE0, BackboneConfig
from .fields import DataConfig, ModelConfig, RunConfig, TrainConfig
from .losses import LossConfig
from .routes import RouteConfig


def detr_r50() -> RunConfig:
    """DETR with ResNet-50: 42.0 AP after 500 epochs in DETR's paper (41 M parameters, 86 GFLOPs)."""
    return RunConfig(
        recipe="detr_r50",
        model=ModelConfig(
            neck="projection",
            position="sine",
            attention="dense",
            queries="static",
            classification="softmax",
            num_queries=100,
            num_levels=1,
            ffn_dim=2048,
            decoder_norm=True,
        ),
        train=TrainConfig(
            epochs=500,
            lr=1e-4,
            lr_backbone=1e-5,
            lr_batch_size=64,
            lr_drop_epochs=(400,),
            loss=LossConfig(class_cost=1.0, class_weight=1.0),
        ),
    )


def detr_r50_dc5() -> RunConfig:
    """Table 1: DETR-DC5 (last stage at stride 16, 187 GFLOPs): 43.3 AP after 500 epochs, 35.3 after 50."""
    base = detr_r50()
    return replace(base, recipe="detr_r50_dc5", model=_with_backbone(base.model, dilation=True))


def detr_r50_dc5_plus() -> RunConfig:
    """Table 1: DETR-DC5+, with focal loss (weight 2) and 300 queries: 36.2 AP after 50 epochs."""
    base = detr_r50_dc5()
    return replace(
        base,
        recipe="detr_r50_dc5_plus",
        model=replace(base.model, classification="sigmoid_focal", num_queries=300),
        train=replace(base.train, epochs=50, lr_drop_epochs=(40,), loss=LossConfig()),
    )


def detr_r101() -> RunConfig:
    """DETR with ResNet-101: 43.5 AP after 500 epochs in DETR's paper (60 M parameters, 152 GFLOPs)."""
    base = detr_r50()
    return replace(base, recipe="detr_r101", model=_with_backbone(base.model, name="resnet101"))


def deformable_detr_r50() -> RunConfig:
    """Deformable DETR (40 M parameters, 173 GFLOPs): 44.5 AP after 50 epochs in the authors' repository, 43.8
    in the paper.
    """
    return RunConfig(recipe="deformable_detr_r50")


def deformable_detr_r50_single_scale() -> RunConfig:
    """Deformable DETR on C5 alone (34 M parameters, 78 GFLOPs): 39.4 AP after 50 epochs in the authors'
    repository.
    """
    base = deformable_detr_r50()
    return replace(base, recipe="deformable_detr_r50_single_scale", model=replace(base.model, num_levels=1))


def deformable_detr_r50_single_scale_dc5() -> RunConfig:
    """Deformable DETR on C5 at stride 16 (34 M parameters, 128 GFLOPs): 41.5 AP after 50 epochs in the
    authors' repository.
    """
    base = deformable_detr_r50_single_scale()
    return replace(
        base,
        recipe="deformable_detr_r50_single_scale_dc5",
        model=_with_backbone(base.model, dilation=True),
    )


def deformable_detr_r50_refine() -> RunConfig:
    """Deformable DETR with iterative bounding box refinement: 46.2 AP after 50 epochs in the authors'
    repository, 45.4 in the paper.
    """
    base = deformable_detr_r50()
    return replace(
        base, recipe="deformable_detr_r50_refine", model=replace(base.model, refine_references=True)
    )


def deformable_detr_r50_two_stage() -> RunConfig:
    """Deformable DETR with refinement and two stages: 46.9 AP after 50 epochs in the authors' repository,
    46.2 in the paper.
    """
    base = deformable_detr_r50_refine()
    return replace(
        base, recipe="deformable_detr_r50_two_stage", model=replace(base.model, queries="proposals")
    )


def deformable_detr_r50_fpn() -> RunConfig:
    """Table 2: an FPN between backbone and encoder, which brings no improvement: 43.8 AP after 50 epochs."""
    base = deformable_detr_r50()
    return replace(base, recipe="deformable_detr_r50_fpn", model=replace(base.model, neck="fpn"))


def deformable_detr_r50_bifpn() -> RunConfig:
    """Table 2: a BiFPN, which brings hardly any improvement: 43.9 AP after 50 epochs."""
    base = deformable_detr_r50()
    return replace(base, recipe="deformable_detr_r50_bifpn", model=replace(base.model, neck="bifpn"))


def deformable_detr_r50_own_level() -> RunConfig:
    """Table 2: multi-scale inputs without multi-scale attention: 42.3 AP after 50 epochs."""
    base = deformable_detr_r50()
    return replace(
        base,
        recipe="deformable_detr_r50_own_level",
        model=replace(base.model, attention="deformable_own_level"),
    )


def deformable_detr_r50_own_level_k1() -> RunConfig:
    """Table 2: own-level attention with one point per head: 41.4 AP after 50 epochs.

    This is close to deformable convolution.
    """
    base = deformable_detr_r50_own_level()
    return replace(base, recipe="deformable_detr_r50_own_level_k1", model=replace(base.model, num_points=1))


def deformable_detr_r50_single_scale_k1() -> RunConfig:
    """Table 2: one level and one point per head: 39.7 AP after 50 epochs."""
    base = deformable_detr_r50_single_scale()
    return replace(
        base, recipe="deformable_detr_r50_single_scale_k1", model=replace(base.model, num_points=1)
    )


def deformable_detr_r101_two_stage() -> RunConfig:
    """Table 3: two stages with ResNet-101: 48.7 AP on test-dev."""
    base = deformable_detr_r50_two_stage()
    return replace(
        base, recipe="deformable_detr_r101_two_stage", model=_with_backbone(base.model, name="resnet101")
    )


def deformable_detr_x101_two_stage() -> RunConfig:
    """Table 3: two stages with ResNeXt-101: 49.0 AP on test-dev.

    The paper does not specify the width of the ResNeXt. This recipe uses 64x4d.
    """
    base = deformable_detr_r101_two_stage()
    return replace(
        base,
        recipe="deformable_detr_x101_two_stage",
        model=_with_backbone(base.model, name="resnext101_64x4d"),
    )


def deformable_detr_x101_dcn_two_stage() -> RunConfig:
    """Table 3: ResNeXt-101 with deformable convolutions in stages C3 to C5: 50.1 AP on test-dev."""
    base = deformable_detr_x101_two_stage()
    return replace(
        base,
        recipe="deformable_detr_x101_dcn_two_stage",
        model=_with_backbone(base.model, deformable_stages=(3, 4, 5)),
    )


def deformable_detr_r50_plus() -> RunConfig:
    """Two stages with learned content, look forward twice and no dropout: 47.0 AP after 12 epochs (H-DETR).

    H-DETR's repository publishes 47.0 AP after 12 epochs and 49.0 after 36 for these settings with 300
    queries, its "Deformable-DETR + tricks"; without the three tricks it has 43.7 after 12. For 24 epochs, set
    `--train.epochs 24 --train.lr_drop_epochs [20]`. The feed-forward width is 2048, as in all published
    results; `--model.ffn_dim 1024` makes the encoder cheaper (specification §12.1).
    """
    base = deformable_detr_r50_two_stage()
    return replace(
        base,
        recipe="deformable_detr_r50_plus",
        model=replace(base.model, queries="mixed", ffn_dim=2048, dropout=0.0),
        train=replace(base.train, epochs=12, lr_drop_epochs=(11,), lr_batch_size=16, look_forward_twice=True),
    )


def deformable_detr_r50_plus_routes() -> RunConfig:
    """`deformable_detr_r50_plus`, trained with Mr. DETR's third route: the same model, 12 epochs.

    Mr. DETR publishes 49.5 AP after 12 epochs for its three routes together with 300 queries. With 900
    (`--model.num_queries 900`), it publishes 50.4 for the third route alone, 50.7 for all three, and 51.4 for
    all three after 24 epochs (`--train.epochs 24 --train.lr_drop_epochs [20]`). This package does not have
    its first two routes; `--train.routes.no_self_attention 0.33` adds DAC-DETR's route (specification §12.5).
    """
    base = deformable_detr_r50_plus()
    return replace(
        base,
        recipe="deformable_detr_r50_plus_routes",
        train=replace(base.train, routes=RouteConfig(instructed=1.0)),
    )


def deformable_detr_lite() -> RunConfig:
    """A small two-stage detector for training on a CPU: EfficientNet-Lite0, 128 channels and 3 + 3 layers.

    Sizes, schedule, augmentation and losses were chosen by measurements on two cores (docs/training.md,
    docs/small_data.md). Useful options are `--data.vertical_flip true` for pictures without an up and a down,
    and `--model.queries reference_points --model.nms_iou null` for one stage.
    """
    base = deformable_detr_r50()
    return replace(
        base,
        recipe="deformable_detr_lite",
        model=replace(
            base.model,
            backbone=BackboneConfig(LITE0, trainable_layers=2),
            queries="mixed",
            num_queries=100,
            hidden_dim=128,
            num_levels=3,
            encoder_layers=3,
            decoder_layers=3,
            ffn_dim=512,
            dropout=0.0,
            refine_references=True,
            mask_invalid_proposals=True,
            nms_iou=0.7,
        ),
        data=DataConfig(
            image_size=352,
            max_size=600,
            train_sizes=(256, 288, 320, 352),
            size_multiple=32,
            augmentation="light",
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
        ),
        train=TrainConfig(
            epochs=24,
            fit_to_data=True,
            batch_size=4,
            batching="auto",
            lr=1e-3,
            lr_backbone=1e-4,
            lr_sampling_multiplier=0.5,
            lr_rule="sqrt",
            lr_batch_size=4,
            schedule="cosine",
            lr_drop_epochs=(),
            warmup_steps=100,
            ema_decay=0.998,
            evaluate_every=4,
            look_forward_twice=True,
            loss=LossConfig(classification_loss="mal"),
            routes=RouteConfig(no_self_attention=0.33),
        ),
    )


def _with_backbone(model: ModelConfig, **changes: object) -> ModelConfig:
    return replace(model, backbone=replace(model.backbone, **changes))  # type: ignore[arg-type]


RECIPES: dict[str, Callable[[], RunConfig]] = {
    recipe.__name__: recipe
    for recipe in (
        detr_r50,
        detr_r50_dc5,
        detr_r50_dc5_plus,
        detr_r101,
        deformable_detr_r50,
        deformable_detr_r50_single_scale,
        deformable_detr_r50_single_scale_dc5,
        deformable_detr_r50_refine,
        deformable_detr_r50_two_stage,
        deformable_detr_r50_fpn,
        deformable_detr_r50_bifpn,
        deformable_detr_r50_own_level,
        deformable_detr_r50_own_level_k1,
        deformable_detr_r50_single_scale_k1,
        deformable_detr_r101_two_stage,
        deformable_detr_x101_two_stage,
        deformable_detr_x101_dcn_two_stage,
        deformable_detr_r50_plus,
        deformable_detr_r50_plus_routes,
        deformable_detr_lite,
    )
}


def recipe(name: str) -> RunConfig:
    """Return the recipe with this name.

    Raises:
        UserError: if there is no such recipe; the message lists the names.
    """
    if not isinstance(name, str) or name not in RECIPES:  # a file may state any value
        raise UserError(f"there is no recipe {name}: choose one of {', '.join(RECIPES)}.")
    return RECIPES[name]()

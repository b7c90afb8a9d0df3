"""Recipes against the tables of the paper and the authors' command lines (specification §4.5, §8.4, §9.1)."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from deformable_detr.config import RECIPES, recipe, to_dict
from deformable_detr.errors import UserError
from deformable_detr.models import build_model
from tests.support.parameter_counts import PARAMETERS


def differences(name: str, base: str) -> dict[str, tuple[Any, Any]]:
    """Leaves in which two recipes differ: path → (base's value, name's value)."""

    def leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        flat: dict[str, Any] = {}
        for key, value in values.items():
            path = f"{prefix}{key}"
            flat |= leaves(value, f"{path}.") if isinstance(value, dict) else {path: value}
        return flat

    theirs, mine = leaves(to_dict(recipe(base))), leaves(to_dict(recipe(name)))
    return {
        path: (theirs[path], mine[path]) for path in mine if path != "recipe" and mine[path] != theirs[path]
    }


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_its_name_and_a_description(name: str) -> None:
    assert recipe(name).recipe == name
    assert RECIPES[name].__doc__


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_builds_with_the_published_number_of_parameters(name: str) -> None:
    with (
        torch.device("meta") if recipe(name).model.backbone.name.startswith("resnet") else torch.device("cpu")
    ):
        model = build_model(recipe(name).model)
    parameters = list(model.parameters())
    total = sum(p.numel() for p in parameters)
    learning = sum(p.numel() for p in parameters if p.requires_grad)
    if name in PARAMETERS:
        assert (total, learning) == PARAMETERS[name]
    else:
        assert 0 < learning < total


def test_an_unknown_recipe_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(UserError, match=r"there is no recipe yolo: choose one of detr_r50, .*_lite"):
        recipe("yolo")


def test_deformable_detr_is_the_authors_command_line() -> None:
    run = recipe("deformable_detr_r50")
    model, train, loss = run.model, run.train, run.train.loss
    assert (train.lr, train.lr_backbone, train.lr_sampling_multiplier) == (2e-4, 2e-5, 0.1)
    assert (train.batch_size, train.weight_decay, train.clip_norm, train.seed) == (2, 1e-4, 0.1, 42)
    assert (train.epochs, train.lr_drop_epochs, train.lr_gamma) == (50, (40,), 0.1)
    assert (train.lr_batch_size, train.lr_rule, train.warmup_steps, train.ema_decay) == (32, "none", 0, 0.0)
    assert (model.num_levels, model.num_points, model.num_heads, model.num_queries) == (4, 4, 8, 300)
    assert (model.encoder_layers, model.decoder_layers, model.ffn_dim) == (6, 6, 1024)
    assert (model.hidden_dim, model.dropout, model.decoder_norm) == (256, 0.1, False)
    assert (loss.class_cost, loss.box_cost, loss.giou_cost) == (2, 5, 2)
    assert (loss.class_weight, loss.box_weight, loss.giou_weight) == (2, 5, 2)
    assert (loss.focal_alpha, loss.focal_gamma, loss.auxiliary) == (0.25, 2, True)
    assert run.data.train_sizes == tuple(range(480, 801, 32))
    assert (run.data.image_size, run.data.max_size, run.data.augmentation) == (800, 1333, "paper")


def test_detr_differs_from_deformable_detr_where_the_papers_differ() -> None:
    assert differences("detr_r50", "deformable_detr_r50") == {
        "model.neck": ("channel_mapper", "projection"),
        "model.position": ("sine_half_pixel", "sine"),
        "model.attention": ("deformable", "dense"),
        "model.queries": ("reference_points", "static"),
        "model.classification": ("sigmoid_focal", "softmax"),
        "model.num_queries": (300, 100),
        "model.num_levels": (4, 1),
        "model.ffn_dim": (1024, 2048),
        "model.decoder_norm": (False, True),
        "train.epochs": (50, 500),
        "train.lr": (2e-4, 1e-4),
        "train.lr_backbone": (2e-5, 1e-5),
        "train.lr_batch_size": (32, 64),
        "train.lr_drop_epochs": ([40], [400]),
        "train.loss.class_cost": (2.0, 1.0),
        "train.loss.class_weight": (2.0, 1.0),
    }


@pytest.mark.parametrize(
    ("name", "base", "changes"),
    [
        ("detr_r50_dc5", "detr_r50", {"model.backbone.dilation": (False, True)}),
        ("detr_r101", "detr_r50", {"model.backbone.name": ("resnet50", "resnet101")}),
        (
            "detr_r50_dc5_plus",
            "detr_r50_dc5",
            {
                "model.classification": ("softmax", "sigmoid_focal"),
                "model.num_queries": (100, 300),
                "train.epochs": (500, 50),
                "train.lr_drop_epochs": ([400], [40]),
                "train.loss.class_cost": (1.0, 2.0),
                "train.loss.class_weight": (1.0, 2.0),
            },
        ),
        ("deformable_detr_r50_single_scale", "deformable_detr_r50", {"model.num_levels": (4, 1)}),
        (
            "deformable_detr_r50_single_scale_dc5",
            "deformable_detr_r50_single_scale",
            {"model.backbone.dilation": (False, True)},
        ),
        ("deformable_detr_r50_refine", "deformable_detr_r50", {"model.refine_references": (False, True)}),
        (
            "deformable_detr_r50_two_stage",
            "deformable_detr_r50_refine",
            {"model.queries": ("reference_points", "proposals")},
        ),
        ("deformable_detr_r50_fpn", "deformable_detr_r50", {"model.neck": ("channel_mapper", "fpn")}),
        ("deformable_detr_r50_bifpn", "deformable_detr_r50", {"model.neck": ("channel_mapper", "bifpn")}),
        (
            "deformable_detr_r50_own_level",
            "deformable_detr_r50",
            {"model.attention": ("deformable", "deformable_own_level")},
        ),
        (
            "deformable_detr_r50_own_level_k1",
            "deformable_detr_r50_own_level",
            {"model.num_points": (4, 1)},
        ),
        (
            "deformable_detr_r50_single_scale_k1",
            "deformable_detr_r50_single_scale",
            {"model.num_points": (4, 1)},
        ),
        (
            "deformable_detr_r101_two_stage",
            "deformable_detr_r50_two_stage",
            {"model.backbone.name": ("resnet50", "resnet101")},
        ),
        (
            "deformable_detr_x101_two_stage",
            "deformable_detr_r101_two_stage",
            {"model.backbone.name": ("resnet101", "resnext101_64x4d")},
        ),
        (
            "deformable_detr_x101_dcn_two_stage",
            "deformable_detr_x101_two_stage",
            {"model.backbone.deformable_stages": ([], [3, 4, 5])},
        ),
        (
            "deformable_detr_r50_plus",
            "deformable_detr_r50_two_stage",
            {
                "model.queries": ("proposals", "mixed"),
                "model.ffn_dim": (1024, 2048),
                "model.dropout": (0.1, 0.0),
                "train.epochs": (50, 12),
                "train.lr_batch_size": (32, 16),
                "train.lr_drop_epochs": ([40], [11]),
                "train.look_forward_twice": (False, True),
            },
        ),
        (
            "deformable_detr_r50_plus_routes",
            "deformable_detr_r50_plus",
            {"train.routes.instructed": (0.0, 1.0)},
        ),
    ],
)
def test_a_recipe_differs_from_its_base_in_nothing_else(
    name: str, base: str, changes: dict[str, tuple[Any, Any]]
) -> None:
    assert differences(name, base) == changes


def test_the_lite_recipe_offers_one_stage_without_refinement() -> None:
    run = recipe("deformable_detr_lite")
    assert (run.model.queries, run.model.nms_iou) == ("mixed", 0.7)
    one_stage = dataclasses.replace(run.model, queries="reference_points", nms_iou=None)
    for model in (one_stage, dataclasses.replace(one_stage, refine_references=False)):
        build_model(model)

"""A data set and a model that are small enough to be trained in a test, and comparisons of run folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from deformable_detr.config import BackboneConfig, LossConfig, RouteConfig, RunConfig, override
from deformable_detr.config.recipes import deformable_detr_lite
from deformable_detr.data.drawn import generate

TRAIN_IMAGES, VAL_IMAGES, IMAGE_SIZE = 12, 6, (64, 80)


def write_tiny_data(root: Path) -> Path:
    """Write 12 + 6 drawn pictures of 64x80 with six classes in COCO layout, and return the folder."""
    return generate(root, train=TRAIN_IMAGES, val=VAL_IMAGES, image_size=IMAGE_SIZE, seed=3)


def changed_data(source: Path, root: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Copy a COCO data set, applying `change` to the contents of each annotation file."""
    shutil.copytree(source, root)
    for path in (root / "annotations").iterdir():
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
    return root


def tiny_config(**changes: Any) -> RunConfig:
    """Return the lite recipe with a model of 0.15 M parameters: 6 updates per epoch, of about 50 ms each.

    It has everything that makes a run hard to repeat: dropout, several picture sizes, a warm-up and a moving
    average.
    """
    base = deformable_detr_lite()
    model = replace(
        base.model,
        backbone=BackboneConfig("test_efficientnet", trainable_layers=5),
        queries="reference_points",
        nms_iou=None,
        num_queries=10,
        hidden_dim=32,
        num_heads=4,
        num_points=2,
        encoder_layers=1,
        decoder_layers=2,
        ffn_dim=64,
        dropout=0.1,
    )
    # Sides are not rounded, because these pictures would be squeezed.
    data = replace(
        base.data, image_size=64, max_size=120, train_sizes=(48, 64), size_multiple=1, num_workers=0
    )
    train = replace(
        base.train,
        epochs=2,
        evaluate_every=1,
        batch_size=2,
        batching="padded",
        lr_batch_size=2,
        warmup_steps=3,
        ema_decay=0.9,
        backbone_weights=None,
        log_every=1,
        lr=5e-4,
        fit_to_data=False,
        look_forward_twice=False,
        loss=LossConfig(),
        routes=RouteConfig(),
        report=False,  # tests of the report ask for it
    )
    return override(RunConfig("deformable_detr_lite", model, data, train), changes)


def repeatable_in_parts(**changes: Any) -> RunConfig:
    """Return `tiny_config` without dropout and augmentation, whose results depend on how a batch is split."""
    settings = {"dropout": 0.0, "augmentation": "none", "ema_decay": 0.0, "warmup_steps": 0, "lr": 1.0}
    return tiny_config(**{**settings, "lr_backbone": 1.0, **changes})


def as_detr(config: RunConfig) -> RunConfig:
    """Return `config` with DETR's parts: one level, dense attention, softmax with a no-object class."""
    model = replace(
        config.model,
        num_levels=1,
        neck="projection",
        position="sine",
        attention="dense",
        queries="static",
        classification="softmax",
        decoder_norm=True,
        refine_references=False,
        nms_iou=None,
    )
    loss = replace(config.train.loss, classification_loss="focal")  # which softmax replaces
    train = replace(config.train, loss=loss, look_forward_twice=False, routes=RouteConfig())
    return replace(config, model=model, train=train)


def weights(run: Path, name: str = "last") -> dict[str, Tensor]:
    return load_file(run / "checkpoints" / name / "model.safetensors")


def state(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(run / "training_state.pt", weights_only=True)
    return content


def rows(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def assert_same_run(run: Path, other: Path) -> None:
    """Assert that two runs have bitwise equal weights, moments, losses and metrics, and no row twice."""
    for name in ("last", "best"):
        theirs = weights(other, name)
        for key, value in weights(run, name).items():
            assert torch.equal(value, theirs[key]), (name, key)
    mine, theirs = state(run), state(other)
    assert mine["step"] == theirs["step"]
    for key, value in mine["model"].items():
        assert torch.equal(value, theirs["model"][key]), key
    for index, moments in mine["optimizer"]["state"].items():
        for key, value in moments.items():
            assert torch.equal(value, theirs["optimizer"]["state"][index][key]), (index, key)
    timings = ("images_per_second", "seconds", "peak_memory_gb")
    for kind in ("train", "evaluation"):
        own, expected = (
            [{key: value for key, value in row.items() if key not in timings} for row in rows(one, kind)]
            for one in (run, other)
        )
        assert own == expected


def movement(run: Path, start: Path, name: str = "last") -> dict[str, Tensor]:
    """Return how far training moved each weight."""
    before = weights(start)
    return {key: value - before[key] for key, value in weights(run, name).items()}


def assert_same_movement(run: Path, other: Path, start: Path, tolerance: float) -> None:
    """Assert that two runs moved their weights alike, relative to the largest movement."""
    mine, theirs = movement(run, start), movement(other, start)
    largest = max(float(value.abs().max()) for value in theirs.values())
    assert largest > 0
    worst = {key: float((mine[key] - theirs[key]).abs().max()) / largest for key in mine}
    assert max(worst.values()) < tolerance, max(worst, key=lambda key: worst[key])


# All routes (they are used only in training), with different weights.
ROUTES = {
    "train.routes.no_self_attention": 0.33,
    "train.routes.instructed": 1.0,
    "train.routes.denoising": 0.5,
    "train.routes.denoising_queries": 8,
}


def routed_config(**changes: Any) -> RunConfig:
    """Return `tiny_config` with mixed queries, look forward twice and all routes."""
    config = tiny_config(queries="mixed", look_forward_twice=True)
    return override(config, {**ROUTES, **changes})

"""That models learn: eight real pictures, seen until they are known by heart.

A detector that cannot do that has a bug somewhere between the pixels and the optimizer, whatever its other
tests say. The pictures are BCCD's first eight (blood cells, 640x480), named here so that nobody's sorting
decides which they are.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from deformable_detr.config import RunConfig, override
from deformable_detr.config.recipes import deformable_detr_lite
from deformable_detr.evaluation import evaluate
from deformable_detr.training.run import train
from tests.support.paths import data_set
from tests.support.tiny import as_detr, rows

pytestmark = pytest.mark.slow

IMAGES = (
    "BloodImage_00001.jpg",
    "BloodImage_00003.jpg",
    "BloodImage_00004.jpg",
    "BloodImage_00005.jpg",
    "BloodImage_00006.jpg",
    "BloodImage_00008.jpg",
    "BloodImage_00009.jpg",
    "BloodImage_00010.jpg",
)


@pytest.fixture(scope="module")
def eight_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO folder whose train and val are the same eight pictures."""
    source, root = data_set("bccd_coco"), tmp_path_factory.mktemp("bccd") / "data"
    content = json.loads((source / "annotations" / "instances_train.json").read_text())
    content["images"] = [row for row in content["images"] if row["file_name"] in IMAGES]
    ids = {row["id"] for row in content["images"]}
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] in ids]
    assert len(ids) == len(IMAGES)
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (root / split).mkdir()
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
        for name in IMAGES:
            shutil.copy(source / "train" / name, root / split / name)
    return root


def by_heart(config: RunConfig, updates: int) -> RunConfig:
    """Four updates of two unchanged pictures an epoch, at 192x256, for a few minutes on two cores. What
    slows a short training down is left out."""
    return override(
        config,
        {
            "augmentation": "none",
            "image_size": 192,
            "batch_size": 2,
            "epochs": updates // 4,
            "evaluate_every": updates // 4,
            "lr": 6e-4,
            "lr_backbone": 2e-4,
            "lr_sampling_multiplier": 0.5,
            "lr_rule": "none",
            "warmup_steps": 30,
            "ema_decay": 0.98,
            "backbone_weights": "imagenet",  # from the package of the extra [lite]
            "log_every": 20,
            "seed": 0,
        },
    )


def test_deformable_detr_lite_knows_eight_images_by_heart(eight_images: Path, tmp_path: Path) -> None:
    detector = train(eight_images, by_heart(deformable_detr_lite(), 800), tmp_path / "run")
    metrics = evaluate(detector, eight_images, progress=False)
    print({name: metrics[name] for name in ("AP", "AP50", "AP75", "per_class")})
    assert metrics["AP50"] >= 0.95
    assert metrics["AP"] >= 0.75


def test_a_small_detr_learns_eight_images(eight_images: Path, tmp_path: Path) -> None:
    # DETR is slow to learn where things are: its loss tells more than its AP after so few updates.
    config = as_detr(by_heart(deformable_detr_lite(), 800))
    loss = replace(config.train.loss, class_cost=1.0, class_weight=1.0)
    config = replace(config, train=replace(config.train, loss=loss, lr=3e-4))
    train(eight_images, config, tmp_path / "run")
    losses = [row["loss"] for row in rows(tmp_path / "run", "train")]
    print(losses)
    assert losses[0] > 12  # three layers' losses at the start
    assert losses[-1] < 6

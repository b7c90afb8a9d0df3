from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from deformable_detr.config import DataConfig, RunConfig, recipe
from deformable_detr.data.formats import read_split
from deformable_detr.inspection import inspect
from deformable_detr.inspection.sizes import BIN_EDGES, ObjectSizes, RecipeView, sizes_of, spread
from deformable_detr.models.build import build_model, level_strides
from deformable_detr.structures import ImageBatch
from tests.support.dataset_files import coco_content, write_coco
from tests.support.tiny import as_detr, tiny_config


@pytest.mark.parametrize(
    "config",
    [
        tiny_config(),
        tiny_config(num_levels=4),
        tiny_config(num_levels=2, neck="fpn"),
        as_detr(tiny_config()),
        tiny_config(**{"model.backbone.name": "resnet18"}),
        tiny_config(**{"model.backbone.name": "resnet50", "model.backbone.dilation": True, "num_levels": 4}),
    ],
    ids=["three levels", "four", "two and an FPN", "DETR", "ResNet-18", "ResNet-50 DC5"],
)
def test_strides_are_those_of_the_model(config: RunConfig) -> None:
    model = build_model(config.model).eval()
    with torch.no_grad():
        memory = model.embed(ImageBatch.from_images([torch.zeros(3, 256, 384)]))
    shapes = tuple((256 // stride, 384 // stride) for stride in level_strides(config.model))
    assert memory.spatial_shapes == shapes


def test_strides_of_recipes() -> None:
    assert level_strides(recipe("deformable_detr_r50").model) == (8, 16, 32, 64)
    assert level_strides(recipe("deformable_detr_lite").model) == (8, 16, 32)
    assert level_strides(recipe("detr_r50").model) == (32,)
    assert level_strides(recipe("detr_r50_dc5").model) == (16,)


def test_sizes_after_resizing(tmp_path: Path) -> None:
    content = coco_content(
        {"a.jpg": [("cat", (0.0, 0.0, 10.0, 40.0)), ("cat", (0.0, 0.0, 30.0, 30.0))], "b.jpg": []},
        size=(50, 100),
    )
    content["annotations"][1]["iscrowd"] = 1
    write_coco(tmp_path, content, size=(50, 100))
    images = read_split(tmp_path, "train").images
    wide, narrow = DataConfig(image_size=100, max_size=1000), DataConfig(image_size=100, max_size=100)
    np.testing.assert_allclose(sizes_of(images, wide), [40.0])  # twice as large: 20 x 80
    np.testing.assert_allclose(sizes_of(images, narrow), [20.0])  # the long side is full already
    assert len(sizes_of(images[1:], narrow)) == 0


def test_quantiles_and_bins() -> None:
    sizes = ObjectSizes.from_pixels(np.array([4.0, 8.0, 16.0, 17.0, 1000.0]), finest_stride=8)
    assert sizes.bins == (1, 1, 2, 0, 0, 1)
    assert len(sizes.bins) == len(BIN_EDGES) + 1
    assert (sizes.quantiles[0], sizes.quantiles[3], sizes.quantiles[-1]) == (4.0, 16.0, 1000.0)
    assert sizes.below_cell == 0.2
    assert sizes.to_dict([8, 16])["cells"][1]["half"] == 1.0
    assert ObjectSizes.from_pixels(np.zeros(0), 8).below_cell == 0.0


def test_the_recipe_decides(tmp_path: Path) -> None:
    write_coco(tmp_path, coco_content({"a.jpg": [("cat", (0.0, 0.0, 12.0, 12.0))] * 1}))
    lite, full = inspect(tmp_path), inspect(tmp_path, "deformable_detr_r50")
    # 48 x 64 pixels become 352 x 480 (15 times 32) and 800 x 1066
    assert lite.splits[0].sizes.quantiles[0] == pytest.approx(12 * (352 / 48 * 480 / 64) ** 0.5)
    assert full.splits[0].sizes.quantiles[0] == pytest.approx(12 * 800 / 48, rel=0.01)
    config = recipe("deformable_detr_lite")
    small = replace(config, model=replace(config.model, num_queries=7))
    assert RecipeView.from_config(small).num_queries == 7
    assert inspect(tmp_path, small).to_dict()["view"]["num_queries"] == 7


def test_the_spread_of_no_objects_is_no_number() -> None:
    assert spread(ObjectSizes.from_pixels(np.array([4.0, 12.0]), 8), 8, 1)[-1] == "1.5"
    assert set(spread(ObjectSizes.from_pixels(np.zeros(0), 8), 8, 1)) == {"n/a"}

"""`model.double()` computes in float64 throughout, for every recipe."""

from __future__ import annotations

import copy

import pytest
import torch

from deformable_detr.config import RECIPES, BackboneConfig, recipe
from deformable_detr.structures import ImageBatch
from tests.support.small_models import random_checkpoint, small_config


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_works_in_float64(name: str) -> None:
    config = small_config(name)
    if not recipe(name).model.backbone.dilation:  # which needs bottleneck blocks
        config = small_config(name, backbone=BackboneConfig("resnet18"))
    model = random_checkpoint(config).model.eval()
    double = copy.deepcopy(model).double()
    images = [torch.randn(3, 70, 101), torch.randn(3, 48, 90)]
    single_batch, double_batch = (
        ImageBatch.from_images([image.to(dtype) for image in images])
        for dtype in (torch.float32, torch.float64)
    )
    with torch.no_grad():
        wanted = model(single_batch).predictions[-1]
    with torch.no_grad():
        found = double.eval()(double_batch).predictions[-1]
    assert found.logits.dtype == found.boxes_cxcywh.dtype == torch.float64
    torch.testing.assert_close(found.logits.float(), wanted.logits, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.boxes_cxcywh.float(), wanted.boxes_cxcywh, atol=1e-3, rtol=0)

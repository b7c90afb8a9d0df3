"""A detector with random weights, shared by the tests of `predict`."""

from __future__ import annotations

import pytest
import torch

from deformable_detr.detections import ClassTable
from deformable_detr.inference.detector import Detector
from deformable_detr.inference.loading import new_checkpoint
from tests.support.tiny import tiny_config


@pytest.fixture(scope="session")
def detector() -> Detector:
    torch.manual_seed(0)
    config = tiny_config()
    classes = ClassTable(("cat", "dog"), (7, 3))
    checkpoint = new_checkpoint(config.model, classes, config.data, config.recipe, None)
    with torch.no_grad():
        for parameter in checkpoint.model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return Detector.of(checkpoint, "cpu")

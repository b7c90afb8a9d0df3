"""models/activation_checkpointing.py: the same gradients, less kept, the same names of weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from deformable_detr.models import build_model
from deformable_detr.models.activation_checkpointing import checkpoint_activations
from deformable_detr.models.model import DetectionModel
from deformable_detr.structures import ImageBatch
from experiments.saved_memory import kept_bytes
from tests.support.small_models import randomise, small_config


def gradients(model: DetectionModel, images: ImageBatch) -> dict[str, Tensor]:
    torch.manual_seed(5)  # dropout
    output = model(images)
    terms = [p.logits.sin().sum() + p.boxes_cxcywh.cos().sum() for p in output.predictions]
    torch.stack(terms).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("recipe", ["deformable_detr_r50_refine", "detr_r50"])
def test_same_gradients(recipe: str) -> None:
    config = small_config(recipe, dropout=0.2)
    plain = randomise(build_model(config)).train()
    assert isinstance(plain, DetectionModel)
    checkpointed = copy.deepcopy(plain)
    checkpoint_activations(checkpointed)
    assert checkpointed.state_dict().keys() == plain.state_dict().keys()
    images = ImageBatch.from_images([torch.randn(3, 64, 96), torch.randn(3, 80, 64)])
    wanted, found = gradients(plain, images), gradients(checkpointed, images)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert torch.equal(found[name], gradient), name


def test_keeps_less() -> None:
    config = small_config("deformable_detr_r50", encoder_layers=3)
    plain = build_model(config).train().requires_grad_(False)
    plain.encoder.requires_grad_(True)
    images = ImageBatch.from_images([torch.randn(3, 128, 128)])
    before = kept_bytes(lambda: plain(images))
    checkpoint_activations(plain)
    assert kept_bytes(lambda: plain(images)) < before / 2


def test_evaluation_is_the_same() -> None:
    model = randomise(build_model(small_config("deformable_detr_r50"))).eval()
    assert isinstance(model, DetectionModel)
    images = [torch.randn(3, 64, 64)]
    with torch.inference_mode():
        wanted = model(images).predictions[-1]
        checkpoint_activations(model)
        found = model(images).predictions[-1]
    assert torch.equal(found.logits, wanted.logits)
    assert torch.equal(found.boxes_cxcywh, wanted.boxes_cxcywh)

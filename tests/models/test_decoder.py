"""Look forward twice: the same numbers, and a gradient that reaches one layer further back."""

from __future__ import annotations

import torch
from torch import Tensor

from deformable_detr.models import DetectionModel, build_model
from deformable_detr.structures import DetectorOutput, ImageBatch
from tests.support.small_models import randomise, small_config

IMAGES = ImageBatch.from_images([torch.randn(3, 64, 80), torch.randn(3, 48, 96)])


def model_of(twice: bool, recipe: str = "deformable_detr_r50_plus") -> DetectionModel:
    model = build_model(small_config(recipe, decoder_layers=4, dropout=0.0))
    randomise(model, seed=2)
    model.decoder.look_forward_twice = twice
    return model


def box_gradient(model: DetectionModel, output: DetectorOutput, layer: int) -> list[Tensor | None]:
    """The gradient of a layer's boxes with respect to the bias of each layer's box head."""
    biases = [head.box_head[4].bias for head in model.decoder.heads]  # type: ignore[union-attr,index]
    boxes = output.predictions[layer].boxes_cxcywh
    return list(torch.autograd.grad(boxes.sum(), biases, retain_graph=True, allow_unused=True))


def test_predictions_are_equal_to_the_bit() -> None:
    for recipe in ("deformable_detr_r50_plus", "deformable_detr_r50_refine", "deformable_detr_r50"):
        once, twice = (model_of(twice, recipe)(IMAGES).predictions for twice in (False, True))
        for one, other in zip(once, twice, strict=True):
            assert torch.equal(one.logits, other.logits)
            assert torch.equal(one.boxes_cxcywh, other.boxes_cxcywh)


def test_the_loss_of_a_layer_reaches_the_layer_before_and_none_further_back() -> None:
    for twice in (False, True):
        model = model_of(twice)
        output = model(IMAGES)
        for layer in range(4):
            gradients = box_gradient(model, output, layer)
            reached = [index for index, gradient in enumerate(gradients) if gradient is not None]
            assert reached == ([layer - 1, layer] if twice and layer else [layer])


def test_the_gradient_of_the_layer_before_is_that_of_its_own_box() -> None:
    """Boxes are n = sigmoid(logit(r) + d) and p = sigmoid(logit(n) + d'), so dp/dd = p (1 - p)."""
    model = model_of(True)
    output = model(IMAGES)
    gradient = box_gradient(model, output, 2)[1]
    boxes = output.predictions[2].boxes_cxcywh
    assert gradient is not None
    torch.testing.assert_close(gradient, (boxes * (1 - boxes)).sum((0, 1)), rtol=1e-3, atol=1e-4)

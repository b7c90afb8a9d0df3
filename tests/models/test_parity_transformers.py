"""Every variant computes what Hugging Face transformers computes, an implementation that is independent of
ours: same weights, a padded batch, all decoder layers and the first stage.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from deformable_detr.config import recipe
from deformable_detr.structures import DetectorOutput, Predictions
from tests.support.foreign_models import (
    saved_and_loaded,
    small_transformers_model,
    transformers_model,
    unequal_images,
)

pytestmark = pytest.mark.usefixtures("one_thread")

TOLERANCE = 1e-5

RECIPES = {
    "detr_r50": ("detr", {}),
    "deformable_detr_r50": ("deformable_detr", {}),
    "deformable_detr_r50_refine": ("deformable_detr", {"with_box_refine": True}),
    "deformable_detr_r50_two_stage": ("deformable_detr", {"with_box_refine": True, "two_stage": True}),
    "deformable_detr_r50_single_scale": ("deformable_detr", {"num_feature_levels": 1}),
}
SLOW = ("deformable_detr_r50_refine", "deformable_detr_r50_single_scale")  # below in small
SMALL = {
    "refine": ("deformable_detr", {"with_box_refine": True}),
    "single_scale": ("deformable_detr", {"num_feature_levels": 1}),
    "detr_dc5": ("detr", {"dilation": True}),
    "single_scale_dc5": ("deformable_detr", {"num_feature_levels": 1, "dilation": True}),
    "three_levels": ("deformable_detr", {"num_feature_levels": 3}),
    "five_levels": (
        "deformable_detr",
        {"num_feature_levels": 5, "with_box_refine": True, "two_stage": True, "two_stage_num_proposals": 20},
    ),
    "one_point": ("deformable_detr", {"encoder_n_points": 1, "decoder_n_points": 1}),
}


@dataclass(frozen=True)
class Outputs:
    """Per decoder layer, and of the first stage: logits and boxes, joined: (B, Q, classes + 4)."""

    layers: tuple[Tensor, ...]
    proposals: Tensor | None


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in RECIPES]
)
def test_recipe(name: str) -> None:
    family, options = RECIPES[name]
    model = transformers_model(family, num_labels=91, **options)
    checkpoint = saved_and_loaded(model)
    assert checkpoint.recipe == name
    assert checkpoint.config == recipe(name).model
    assert_same(theirs(model), ours(checkpoint.model))


@pytest.mark.parametrize("name", SMALL)
def test_small(name: str) -> None:
    family, options = SMALL[name]
    model = small_transformers_model(family, timm=options.get("dilation", False), **options)
    checkpoint = saved_and_loaded(model)
    assert checkpoint.config.backbone.dilation == options.get("dilation", False)
    assert_same(theirs(model), ours(checkpoint.model))


def test_padding_matters_here() -> None:
    """Otherwise the comparisons above would not see a wrong mask."""
    model = saved_and_loaded(small_transformers_model("deformable_detr")).model
    batch = unequal_images()
    unpadded = type(batch)(batch.pixels, torch.zeros_like(batch.mask))
    with torch.no_grad():
        difference = model(batch).predictions[-1].logits - model(unpadded).predictions[-1].logits
    assert difference.abs().max() > 0.01


def assert_same(expected: Outputs, found: Outputs) -> None:
    spread = expected.layers[-1].std(1).mean(0)
    assert spread[:-4].mean() > 0.01, "logits that hardly differ between queries prove nothing"
    assert spread[-4:].min() > 1e-3, "boxes that hardly differ between queries prove nothing"
    if expected.proposals is not None:
        torch.testing.assert_close(found.proposals, expected.proposals, atol=TOLERANCE, rtol=0)
        # Proposals of nearly equal rank may come in another order, which is another order of queries.
        order = _best_order(expected.layers[-1], found.layers[-1])
        found = Outputs(tuple(layer.gather(1, order) for layer in found.layers), None)
    assert len(found.layers) == len(expected.layers)
    for layer, (layer_found, layer_expected) in enumerate(zip(found.layers, expected.layers, strict=True)):
        difference = (layer_found - layer_expected).abs().max()
        assert difference <= TOLERANCE, f"decoder layer {layer} differs by {difference:.1e}"


def _best_order(expected: Tensor, found: Tensor) -> Tensor:
    orders = [
        torch.as_tensor(linear_sum_assignment(torch.cdist(a.double(), b.double()))[1])
        for a, b in zip(expected, found, strict=True)
    ]
    return torch.stack(orders)[..., None].expand(-1, -1, expected.shape[-1])


@torch.no_grad()
def ours(model: nn.Module) -> Outputs:
    output: DetectorOutput = model(unequal_images())

    def joined(predictions: Predictions) -> Tensor:
        return torch.cat([predictions.logits, predictions.boxes_cxcywh], -1)

    proposals = None if output.proposals is None else joined(output.proposals)
    return Outputs(tuple(joined(predictions) for predictions in output.predictions), proposals)


@torch.no_grad()
def theirs(model: nn.Module) -> Outputs:
    batch = unequal_images()
    inputs = {"pixel_values": batch.pixels, "pixel_mask": (~batch.mask).long()}
    if model.config.model_type == "detr":
        # Its auxiliary outputs are not DETR's: with them, a layer passes on what it should only say (the
        # final norm). So the layers are overheard, and asked for their predictions here.
        heard: list[Tensor] = []
        hooks = [
            layer.register_forward_hook(lambda module, args, output: heard.append(output))
            for layer in model.model.decoder.layers
        ]
        model(**inputs)
        for hook in hooks:
            hook.remove()
        said = [model.model.decoder.layernorm(hidden) for hidden in heard]
        pairs = [
            (model.class_labels_classifier(hidden), model.bbox_predictor(hidden).sigmoid()) for hidden in said
        ]
        return Outputs(tuple(torch.cat(pair, -1) for pair in pairs), None)
    model.config.auxiliary_loss = True  # which needs labels to be given out
    nothing = {"class_labels": torch.zeros(1, dtype=torch.int64), "boxes": torch.full((1, 4), 0.5)}
    output = model(**inputs, labels=[nothing, nothing])
    layers = [(item["logits"], item["pred_boxes"]) for item in output.auxiliary_outputs]
    layers.append((output.logits, output.pred_boxes))
    proposals = None
    if output.enc_outputs_class is not None:
        proposals = torch.cat([output.enc_outputs_class, output.enc_outputs_coord_logits.sigmoid()], -1)
    return Outputs(tuple(torch.cat(layer, -1) for layer in layers), proposals)

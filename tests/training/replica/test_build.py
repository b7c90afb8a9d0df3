"""The replica that is trained: the same parameters, predictions and gradients."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from deformable_detr import ops
from deformable_detr.config import BackboneConfig, ModelConfig, recipe
from deformable_detr.models import DetectionModel, build_model
from deformable_detr.models.backbone import Backbone
from deformable_detr.models.resnet import FrozenBatchNorm2d
from deformable_detr.ops.depthwise import depthwise_conv
from deformable_detr.structures import DetectorOutput, ImageBatch
from deformable_detr.training.replica import convolutions, replica_for_training
from deformable_detr.training.replica.convolutions import (
    NormedConvolution,
    keep_depthwise_in_float32,
    merge_norms,
)
from deformable_detr.training.replica.encoder import UnpaddedEncoder
from tests.support.small_models import randomise, small_config

pytestmark = pytest.mark.skipif(not ops.native_available(), reason=ops.kernels()["cpu"])
CPU = torch.device("cpu")


def lite(**changes: Any) -> ModelConfig:
    backbone = BackboneConfig("tf_efficientnet_lite0", trainable_layers=2)
    return small_config("deformable_detr_lite", **{"backbone": backbone, "hidden_dim": 32, **changes})


def model_of(config: ModelConfig) -> DetectionModel:
    torch.manual_seed(0)
    model = build_model(config)
    randomise(model)
    return model.double()


def replica_of(model: DetectionModel) -> DetectionModel:
    return replica_for_training(model, CPU)


@pytest.fixture
def batch() -> ImageBatch:
    """Three pictures of which none fills the batch."""
    torch.manual_seed(1)
    return ImageBatch.from_images([torch.randn(3, *size).double() for size in ((90, 64), (70, 81), (33, 47))])


def derived(output: DetectorOutput) -> torch.Tensor:
    """A number that depends on all predictions, without those for the padding, which nothing reads."""
    total = torch.zeros((), dtype=torch.double)
    for layer in output.predictions:
        total = total + layer.logits.square().sum() + layer.boxes_cxcywh.sin().sum()
    if output.proposals is not None:
        total = total + output.proposals.logits.cos().sum()
    return total


@pytest.mark.parametrize("queries", ["reference_points", "proposals"])
def test_predictions_and_gradients_are_the_same(batch: ImageBatch, queries: str) -> None:
    model = model_of(lite(queries=queries))
    replica = replica_of(model)
    assert isinstance(replica.encoder, UnpaddedEncoder)
    assert any(isinstance(part, NormedConvolution) and part.is_native for part in replica.modules())
    results = []
    for each in (model, replica):
        output = each(batch)
        grads = torch.autograd.grad(
            derived(output), [p for p in model.parameters() if p.requires_grad], allow_unused=True
        )
        results.append((output, grads))
    (expected, expected_grads), (found, found_grads) = results
    for ours, theirs in zip(found.predictions, expected.predictions, strict=True):
        torch.testing.assert_close(ours.logits, theirs.logits)
        torch.testing.assert_close(ours.boxes_cxcywh, theirs.boxes_cxcywh)
    for our_grad, their_grad in zip(found_grads, expected_grads, strict=True):
        torch.testing.assert_close(our_grad, their_grad, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["deformable_detr_r50", "deformable_detr_lite"])
def test_on_a_gpu_all_norms_are_merged(batch: ImageBatch, name: str) -> None:
    """The device only chooses the replica, so it can be tried on a CPU."""
    config = lite() if name == "deformable_detr_lite" else small_config(name)
    model = model_of(config)
    replica = replica_for_training(model, torch.device("cuda"))
    convolutions = [part for part in replica.backbone.modules() if isinstance(part, torch.nn.Conv2d)]
    merged = [part for part in replica.backbone.modules() if isinstance(part, NormedConvolution)]
    assert len(merged) == len(convolutions) > 0
    assert not isinstance(replica.encoder, UnpaddedEncoder)
    assert not any(type(part).__name__ == "_InFloat32" for part in replica.modules())
    learned = [parameter for parameter in model.backbone.parameters() if parameter.requires_grad]
    results = []
    for each in (model, replica):
        maps = each.backbone(batch.pixels)
        results.append((maps, torch.autograd.grad(sum(map.sin().sum() for map in maps), learned)))
    torch.testing.assert_close(*results, rtol=1e-7, atol=1e-9)


class Standardised(torch.nn.Conv2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self._conv_forward(input, self.weight - self.weight.mean(), self.bias)
        return output


@pytest.mark.parametrize(
    "convolution",
    [
        torch.nn.Conv2d(3, 4, 3, padding="same"),
        torch.nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
        Standardised(3, 4, 3, padding=1),
    ],
)
def test_unusual_convolutions_keep_their_norms(convolution: torch.nn.Module) -> None:
    assert not merge_norms(torch.nn.Sequential(convolution, FrozenBatchNorm2d(4)))
    assert merge_norms(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), FrozenBatchNorm2d(4)))


def test_a_trained_bias_has_its_gradient() -> None:
    """The native kernels of depthwise convolutions compute none."""
    convolution = torch.nn.Conv2d(8, 8, 5, padding=2, groups=8)
    plain = torch.nn.Sequential(convolution, FrozenBatchNorm2d(8))
    merged = copy.deepcopy(plain)
    assert merge_norms(merged)
    pixels = torch.randn(2, 8, 9, 11)
    expected, found = (
        torch.autograd.grad(each(pixels).sin().sum(), [*each.parameters()]) for each in (plain, merged)
    )
    torch.testing.assert_close(found, expected)


def test_the_norms_constants_may_change_afterwards() -> None:
    """As when a run is resumed, whose state is loaded into the model after the replica was built."""
    model = model_of(lite())
    replica, pixels = replica_of(model), torch.randn(1, 3, 64, 64).double()
    replica.backbone(pixels)
    with torch.no_grad():
        for constant in model.backbone.buffers():
            constant.mul_(1.1)
    torch.testing.assert_close(replica.backbone(pixels), model.backbone(pixels))


def test_the_replica_has_the_same_parameters_and_the_model_keeps_its_names() -> None:
    model = model_of(lite())
    names = list(model.state_dict())
    replica = replica_of(model)
    assert {id(p) for p in replica.parameters()} == {id(p) for p in model.parameters()}
    assert list(model.state_dict()) == names
    assert not any(isinstance(part, NormedConvolution) for part in model.modules())


def test_weights_that_are_loaded_later_have_effect(batch: ImageBatch) -> None:
    model, other = model_of(lite()), model_of(lite())
    randomise(other, seed=5)
    replica = replica_of(model)
    model.load_state_dict(other.state_dict())
    expected, found = other(batch).predictions[-1], replica(batch).predictions[-1]
    torch.testing.assert_close(found.boxes_cxcywh, expected.boxes_cxcywh)


def test_a_mask_that_is_no_rectangle_is_computed_as_before(batch: ImageBatch) -> None:
    model = model_of(lite())
    batch.mask[0, 20:50, 20:50] = True
    expected, found = model(batch).predictions[-1], replica_of(model)(batch).predictions[-1]
    torch.testing.assert_close(found.logits, expected.logits)


@pytest.mark.parametrize("name", ["deformable_detr_r50", "deformable_detr_r50_two_stage", "detr_r50"])
def test_the_recipes_of_the_paper_train_the_plain_model(name: str) -> None:
    assert recipe(name).model.dropout > 0
    model = build_model(small_config(name))
    assert replica_of(model) is model


def test_dropout_keeps_the_plain_encoder() -> None:
    replica = replica_of(build_model(lite(dropout=0.1)))
    assert not isinstance(replica.encoder, UnpaddedEncoder)


def test_in_bfloat16_the_replica_is_as_exact_as_the_model(
    batch: ImageBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's gradient of depthwise convolutions is slow in bfloat16, so these compute in float32."""
    seen = []

    def recorded(input: Tensor, *arguments: Any) -> Tensor:
        seen.append(input.dtype)
        return depthwise_conv(input, *arguments)

    monkeypatch.setattr(convolutions, "depthwise_conv", recorded)
    model = model_of(lite()).float()
    replica, pixels = replica_of(model), batch.pixels.float()
    learned = [parameter for parameter in model.backbone.parameters() if parameter.requires_grad]

    def results(backbone: Backbone, is_mixed: bool) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
            maps = backbone(pixels)
        grads = torch.autograd.grad(sum(level.float().square().mean() for level in maps), learned)
        return [*maps, *grads]

    exact = results(model.backbone, False)
    seen.clear()
    mixed = results(replica.backbone, True)
    assert set(seen) == {torch.float32}
    assert {level.dtype for level in mixed[:3]} == {torch.bfloat16}
    for ours, theirs in zip(mixed, exact, strict=True):
        # The largest relative error of the plain model and of the replica was about 0.035.
        assert (ours.float() - theirs).norm() < 0.15 * theirs.norm()


def test_depthwise_convolutions_without_norms_compute_in_float32() -> None:
    convolution = torch.nn.Conv2d(8, 8, 7, padding=3, groups=8)
    backbone = torch.nn.Sequential(
        torch.nn.Sequential(convolution, torch.nn.GELU()), torch.nn.Conv2d(8, 4, 1)
    )
    changed = copy.deepcopy(backbone)
    assert keep_depthwise_in_float32(changed)
    pixels = torch.randn(2, 8, 9, 11)
    torch.testing.assert_close(changed(pixels), backbone(pixels), rtol=0, atol=0)
    exact = convolution(pixels)
    with torch.autocast("cpu", torch.bfloat16):
        found = changed[0][0](pixels.bfloat16())
        assert changed(pixels).dtype == torch.bfloat16
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, convolution(pixels.bfloat16().float()).bfloat16(), rtol=0, atol=0)
    assert not torch.equal(found.float(), exact)
    assert not keep_depthwise_in_float32(torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3, groups=2)))


def test_padded_batches_are_trained_in_bfloat16(batch: ImageBatch) -> None:
    model = model_of(lite(queries="reference_points")).float()  # scores choose proposals
    replica, images = replica_of(model), replace(batch, pixels=batch.pixels.float())
    assert isinstance(replica.encoder, UnpaddedEncoder)
    expected = model(images).predictions[-1]
    with torch.autocast("cpu", torch.bfloat16):
        assert {level.dtype for level in replica.backbone(images.pixels)} == {torch.bfloat16}
        output = replica(images)
    found = output.predictions[-1]
    assert (found.logits.float() - expected.logits).norm() < 0.15 * expected.logits.norm()
    derived(output).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in replica.encoder.parameters())

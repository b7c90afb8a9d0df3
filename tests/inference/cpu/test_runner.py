"""A model's optimised twin: the same predictions for every recipe; built again when the model changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deformable_detr.config import LITE0, RECIPES, BackboneConfig, DataConfig, recipe
from deformable_detr.inference.convolutions import fold_norms
from deformable_detr.inference.cpu import Runner, encoder
from deformable_detr.inference.cpu.encoder import ChunkedEncoder
from deformable_detr.inference.cpu.group_norm import norm_groups_in_two_passes
from deformable_detr.inference.cpu.memory import KEPT_SIZES
from deformable_detr.inference.cpu.queries import ChunkedProposals
from deformable_detr.inference.detector import Detector
from deformable_detr.inference.torch_backends import RunnerBackend
from deformable_detr.models import DetectionModel
from deformable_detr.models.backbone import build_backbone
from deformable_detr.models.neck import GroupNorm
from deformable_detr.models.queries import base_boxes
from deformable_detr.models.resnet import FrozenBatchNorm2d
from deformable_detr.structures import ImageBatch, Predictions
from tests.support.small_models import random_checkpoint, randomise, small_config


def small_model(name: str, **changes: Any) -> DetectionModel:
    """A recipe's model with random weights and the smallest backbone of its kind."""
    backbone = recipe(name).model.backbone
    if backbone.name == LITE0:
        backbone = replace(backbone, name="test_efficientnet")
    elif not backbone.dilation:  # which needs bottleneck blocks
        backbone = replace(backbone, name="resnet18")
    return random_checkpoint(small_config(name, backbone=backbone, **changes)).model.eval()


def images(*sizes: tuple[int, int], seed: int = 0) -> ImageBatch:
    generator = torch.Generator().manual_seed(seed)
    return ImageBatch.from_images([torch.randn(3, *size, generator=generator) for size in sizes])


def plainly(model: DetectionModel, batch: ImageBatch) -> Predictions:
    with torch.no_grad():
        predictions: Predictions = model(batch).predictions[-1]
    return predictions


def assert_same(found: Predictions, wanted: Predictions, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(found.logits, wanted.logits, atol=tolerance, rtol=0)
    torch.testing.assert_close(found.boxes_cxcywh, wanted.boxes_cxcywh, atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_predicts_as_its_plain_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "CHUNK", 50)  # several of them, the last one smaller
    model = small_model(name)
    runner = Runner(model)
    for batch in (images((70, 101)), images((70, 101), (48, 90)), images((70, 101), (70, 101), seed=1)):
        wanted = plainly(model, batch)
        # Some random models (BiFPN, deformable convolutions) magnify rounding, and know no 1e-4 themselves.
        nudged = plainly(model, ImageBatch(batch.pixels * (1 + 1e-6), batch.mask))
        rounding = float((wanted.logits - nudged.logits).abs().max())
        assert rounding < 1e-3
        assert_same(runner(batch), wanted, max(1e-4, 3 * rounding))
        assert wanted.logits.std() > 0.1
        assert wanted.boxes_cxcywh.std() > 0.01


def kinds_of_pictures() -> dict[str, ImageBatch]:
    """Smooth shapes with noise as in photographs; the same beside a smaller one; one colour; a few pixels."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(2, 3, 5, 7, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (96, 136), mode="bicubic")
    real = 1.2 * smooth + 0.1 * torch.randn(smooth.shape, generator=generator)
    half = real[0].clone()
    half[:, :58] = torch.tensor([1.5, -1.0, 2.0])[:, None, None]
    return {
        "real": ImageBatch.from_images([real[0]]),
        "padded": ImageBatch.from_images([real[0], real[1, :, :48, :70]]),
        "uniform": ImageBatch.from_images([torch.full((3, 96, 136), 2.0)]),
        "60 % uniform": ImageBatch.from_images([half]),
        "tiny": ImageBatch.from_images([real[0, :, :9, :7]]),
    }


@pytest.mark.parametrize("name", RECIPES)
def test_it_is_as_exact_as_the_plain_model(name: str) -> None:
    model = small_model(name)
    runner, exact_model = Runner(model), copy.deepcopy(model).double()
    for kind, batch in kinds_of_pictures().items():
        exact = plainly(exact_model, ImageBatch(batch.pixels.double(), batch.mask))
        plain, found = plainly(model, batch), runner(batch)
        for output in ("logits", "boxes_cxcywh"):
            wanted = getattr(exact, output)
            own = float((getattr(plain, output) - wanted).abs().max())
            error = float((getattr(found, output) - wanted).abs().max())
            assert error <= max(2 * own, 1e-5), (kind, output, error, own)


@pytest.mark.parametrize("name", ["deformable_detr_r50", "deformable_detr_lite"])
def test_group_norm_keeps_its_digits_in_channels_last(name: str) -> None:
    """In the runner and in training, whose backbone is in channels_last.

    Without the convolutions before the norms: how many digits those lose depends on the processor.
    """
    model = small_model(name)
    plain = model.neck
    for level in plain.levels:
        level[0] = nn.Identity()
    torch.manual_seed(0)
    maps = [torch.randn(1, level[1].num_channels, 100, 134) for level in list(plain.levels)[: plain.num_maps]]
    for each in maps:
        each[:, :, :60] = 3 * torch.randn(1, each.shape[1], 1, 1)
    with torch.no_grad():
        wanted = copy.deepcopy(plain).double()([each.double() for each in maps])
        last = [each.to(memory_format=torch.channels_last) for each in maps]
        of_runner = Runner(model)._model.neck(last)
        for exact, usual, training, predicting in zip(
            wanted, plain(maps), plain(last), of_runner, strict=True
        ):
            bound = max(2 * float((usual - exact).abs().max()), 1e-5)
            assert float((training - exact).abs().max()) <= bound
            assert float((predicting - exact).abs().max()) <= bound


def test_group_norm_keeps_its_digits_on_a_map_that_hardly_varies() -> None:
    """Its maximum gain, 1/√ε, applies to the rounding of the mean, too. In a BiFPN whose learned weights have
    switched off a level, maps are like that."""
    norm = GroupNorm(16, 32)
    map = 0.28 + 1e-3 * torch.randn(1, 32, 6, 9, generator=torch.Generator().manual_seed(0))
    neck = nn.Sequential(norm)
    with torch.no_grad():
        exact = copy.deepcopy(norm).double()(map.double())
        norm_groups_in_two_passes(neck)
        assert float((neck(map.to(memory_format=torch.channels_last)) - exact).abs().max()) < 1e-6


@pytest.mark.parametrize("mask_invalid", [True, False])
def test_proposals_of_all_kinds(mask_invalid: bool) -> None:
    model = small_model("deformable_detr_r50_two_stage", mask_invalid_proposals=mask_invalid)
    batch = images((64, 96), (40, 40))
    assert_same(Runner(model)(batch), plainly(model, batch))


def test_tokens_that_make_no_proposal_are_still_looked_at() -> None:
    """From 51 cells on, those at the border are too near to it to propose a box. The decoder samples them."""
    model = small_model("deformable_detr_r50_two_stage")
    batch = images((424, 424))
    memory = model.encoder(model.embed(batch))
    assert base_boxes(memory)[1].any()
    assert_same(Runner(model)(batch), plainly(model, batch))
    kept = memory.tokens.detach().clone()
    with torch.no_grad():
        ChunkedProposals(model.queries)(memory)  # type: ignore[arg-type]
    assert torch.equal(memory.tokens, kept)


def test_what_it_runs_is_the_optimised_model_and_the_plain_one_stays() -> None:
    model = small_model("deformable_detr_r50")
    before = copy.deepcopy(model.state_dict())
    model.train()
    runner = Runner(model)
    twin = runner._model
    assert isinstance(twin.encoder, ChunkedEncoder)
    assert not any("Norm2d" in type(module).__name__ for module in twin.backbone.modules())
    assert len(runner(images((64, 64))).logits) == 1
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.decoder.parameters())
    state = model.state_dict()
    assert state.keys() == before.keys()
    assert all(torch.equal(state[key], before[key]) for key in before)
    for parameter in model.backbone.parameters():
        assert parameter.is_contiguous()


def test_unknown_parts_stay_as_they_are() -> None:
    class Half(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *inputs: Any) -> Tensor:
            output: Tensor = self.inner(*inputs) * 0.5
            return output

    model = small_model("deformable_detr_r50")
    plain = plainly(model, images((64, 80)))
    for layer in (*model.encoder.layers, *model.decoder.layers):
        for name in ("attention", "cross_attention"):
            if hasattr(layer, name):
                setattr(layer, name, Half(getattr(layer, name)))
    wanted = plainly(model, images((64, 80)))
    assert (wanted.logits - plain.logits).abs().max() > 1e-2
    assert_same(Runner(model)(images((64, 80))), wanted)


def test_a_known_size_is_not_computed_again_and_few_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model("deformable_detr_lite")
    runner = Runner(model)
    calls = []
    position = runner._model.position
    encode = position.forward
    monkeypatch.setattr(position, "forward", lambda *masks: calls.append(1) or encode(*masks))
    for size in [(64, 64), (64, 64), (64, 96)]:
        runner(images(size))
    runner(images((64, 96), (64, 96)))  # of another batch size
    assert len(calls) == 2
    runner(images((64, 64), (32, 64)))  # padded
    assert len(calls) == 3
    for width in range(32, 32 + 32 * KEPT_SIZES, 32):
        runner(images((32, width)))
    assert len(runner._model._sizes._memories) == KEPT_SIZES
    assert_same(runner(images((64, 64))), plainly(model, images((64, 64))))


# ---------------------------------------------------------------- norms


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet50", LITE0, "test_efficientnet", "test_resnet", "test_vit"]
)
def test_folded_backbones_compute_the_same(name: str) -> None:
    backbone = randomise(build_backbone(BackboneConfig(name), 1)).eval()
    folded = copy.deepcopy(backbone)
    with torch.no_grad():
        fold_norms(folded)
        size = 160 if name == "test_vit" else 64
        pixels = torch.randn(2, 3, size, size)
        torch.testing.assert_close(folded(pixels), backbone(pixels), atol=1e-4, rtol=1e-4)
    norms = [
        type(module).__name__ for module in folded.modules() if "FrozenBatchNorm" in type(module).__name__
    ]
    assert not norms


class Twice(nn.Module):
    """Convolutions whose norm must not go into them: one is read twice, one is used twice, one not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.read_twice, self.used_twice = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.folded = nn.Conv2d(3, 3, 1, bias=False)
        self.norms = nn.ModuleList(FrozenBatchNorm2d(3) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        a = self.read_twice(x)
        x = a + self.norms[0](a)
        x = self.norms[1](self.used_twice(self.used_twice(x)))
        return self.norms[3](self.norms[2](self.folded(x)).relu())  # type: ignore[no-any-return]


def test_a_norm_is_folded_only_where_nobody_else_sees_the_convolution() -> None:
    plain = randomise(Twice())
    folded = copy.deepcopy(plain)
    with torch.no_grad():
        fold_norms(folded)
        pixels = torch.randn(1, 3, 5, 5)
        torch.testing.assert_close(folded(pixels), plain(pixels))
    kinds = [type(norm).__name__ for norm in folded.norms]
    assert kinds == ["FrozenBatchNorm2d", "FrozenBatchNorm2d", "Identity", "FrozenBatchNorm2d"]


# ---------------------------------------------------------------- 16 bit


# A bfloat16 is off by up to 2⁻⁹ = 0.2 %, and some twenty layers follow each other: √20 · 0.2 % = 1 %.
# Processors differ in the order in which they add and in where they round, so five times that is allowed.
OF_BFLOAT16 = 0.05


def root_mean_square(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


@pytest.mark.parametrize("name", ["detr_r50", "deformable_detr_r50"])
def test_bfloat16_stays_close_and_keeps_coordinates_in_float32(name: str) -> None:
    model = small_model(name)
    batch = images((70, 101), (48, 90))
    runner = Runner(model, torch.bfloat16)
    found, wanted = runner(batch), plainly(model, batch)
    assert found.logits.dtype == found.boxes_cxcywh.dtype == torch.float32
    for output in ("logits", "boxes_cxcywh"):
        right = getattr(wanted, output)
        assert 0 < root_mean_square(getattr(found, output) - right) < OF_BFLOAT16 * float(right.std())
    assert {parameter.dtype for parameter in runner._model.encoder.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["deformable_detr_lite", "deformable_detr_r50_two_stage"])
def test_bfloat16_stays_close_up_to_the_choice_of_proposals(name: str) -> None:
    """Rounding may decide which proposals are the best, and then queries differ: memories are compared."""
    model = small_model(name)
    runner = Runner(model, torch.bfloat16)
    memories: list[Tensor] = []
    for encoder_ in (model.encoder, runner._model.encoder):
        encoder_.register_forward_hook(lambda _, __, memory: memories.append(memory.tokens.float().clone()))
    batch = images((70, 101), (48, 90))
    plainly(model, batch)
    found = runner(batch)
    plain, in_bfloat16 = memories
    assert 0 < root_mean_square(in_bfloat16 - plain) < OF_BFLOAT16 * root_mean_square(plain)
    assert found.logits.dtype == found.boxes_cxcywh.dtype == torch.float32
    assert torch.isfinite(found.logits).all()
    assert ((found.boxes_cxcywh >= 0) & (found.boxes_cxcywh <= 1)).all()


# ---------------------------------------------------------------- changes of the model


def train_a_step(model: DetectionModel) -> None:
    model(images((64, 64))).predictions[-1].logits.sum().backward()
    torch.optim.AdamW(model.parameters(), lr=1e-2).step()


def load_other_weights(model: DetectionModel) -> None:
    model.load_state_dict({key: value * 1.1 for key, value in model.state_dict().items()})


def assign_other_weights(model: DetectionModel) -> None:
    model.load_state_dict({key: value * 1.1 for key, value in model.state_dict().items()}, assign=True)


def exchange_a_module(model: DetectionModel) -> None:
    head = model.decoder.heads[-1]
    head.class_head = nn.Linear(head.class_head.in_features, head.class_head.out_features)


def change_a_buffer(model: DetectionModel) -> None:
    next(model.backbone.buffers()).mul_(2)


@pytest.mark.parametrize(
    "change", [train_a_step, load_other_weights, assign_other_weights, exchange_a_module, change_a_buffer]
)
def test_a_changed_model_gets_a_new_runner(change: Callable[[DetectionModel], None]) -> None:
    model = small_model("deformable_detr_lite")
    backend = RunnerBackend(model, torch.device("cpu"), torch.float32)
    batch = images((64, 64))
    before = backend(batch)
    runner = backend._runner
    backend(batch)
    assert backend._runner is runner
    change(model)
    found, wanted = backend(batch), plainly(model, batch)
    assert (wanted.logits - before.logits).abs().max() > 1e-3
    assert_same(found, wanted)
    assert backend._runner is not runner


# ---------------------------------------------------------------- in the detector


def test_predict_uses_it_from_several_threads() -> None:
    config = small_config("deformable_detr_lite", backbone=BackboneConfig("test_efficientnet"))
    checkpoint = random_checkpoint(config)
    detector = Detector.of(replace(checkpoint, data=DataConfig(image_size=64, max_size=96)), "cpu")
    assert isinstance(detector.backend, RunnerBackend)
    generator = np.random.default_rng(0)
    pictures = [generator.integers(0, 256, (height, 60, 3), dtype=np.uint8) for height in (40, 50, 40)]
    wanted = [detector.predict(picture, 0.0).boxes_xyxy for picture in pictures]
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda picture: detector.predict(picture, 0.0).boxes_xyxy, pictures * 4))
    for boxes, expected in zip(found, wanted * 4, strict=True):
        np.testing.assert_allclose(boxes, expected, atol=1e-3)

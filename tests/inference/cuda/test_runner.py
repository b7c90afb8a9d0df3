"""The replica for GPUs predicts as its plain model does. It runs on a CPU, too, without graphs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import deformable_detr as dd
from deformable_detr.config import RECIPES
from deformable_detr.inference.cuda import Runner
from deformable_detr.inference.cuda.build import optimise
from deformable_detr.inference.cuda.runner import can_be_captured
from deformable_detr.inference.torch_backends import RunnerBackend
from deformable_detr.models.queries import with_best_proposals
from deformable_detr.structures import ImageBatch
from tests.inference.cpu.test_runner import assert_same, images, plainly, small_model
from tests.support.matching import assert_same_detections

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_predicts_as_its_plain_model(name: str) -> None:
    model = small_model(name)
    runner = Runner(model, CPU, torch.float32)
    for batch in (images((70, 101)), images((70, 101), (48, 90))):
        wanted = plainly(model, batch)
        nudged = plainly(model, ImageBatch(batch.pixels * (1 + 1e-6), batch.mask))
        rounding = float((wanted.logits - nudged.logits).abs().max())
        # (On a CPU, group norm in channels_last loses digits; on a GPU it does not.)
        assert_same(runner(batch), wanted, max(5e-4, 3 * rounding))


@pytest.mark.parametrize("name", ["deformable_detr_r50", "detr_r50"])
def test_bfloat16_is_near(name: str) -> None:
    model = small_model(name)
    found = Runner(model, CPU, torch.bfloat16)(images((70, 101)))
    wanted = plainly(model, images((70, 101)))
    error = (found.logits.float() - wanted.logits).norm() / wanted.logits.norm()
    assert 0 < error < 0.1
    assert found.boxes_cxcywh.dtype == torch.float32
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_computes_in_bfloat16(name: str) -> None:
    found = Runner(small_model(name), CPU, torch.bfloat16)(images((70, 101), (48, 90)))
    assert torch.isfinite(found.logits).all()


def test_it_is_current_until_a_weight_changes() -> None:
    model = small_model("deformable_detr_r50")
    runner = Runner(model, CPU, torch.float32)
    assert runner.is_current(model)
    with torch.no_grad():
        model.decoder.heads[0].class_head.bias.add_(1)  # type: ignore[union-attr,operator]
    assert not runner.is_current(model)


@pytest.mark.parametrize("name", RECIPES)
def test_models_with_deformable_convolutions_are_not_captured(name: str) -> None:
    assert can_be_captured(small_model(name)) == ("dcn" not in name)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_gpu_predicts_the_same_by_graph() -> None:
    detector = dd.create("deformable_detr_lite", device="cuda")
    assert isinstance(detector.backend, RunnerBackend)
    picture = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    plainly_computed, recorded, replayed = (detector.predict(picture, threshold=0.0) for _ in range(3))
    for found in (recorded, replayed):
        assert_same_detections(found, plainly_computed, score=1e-6, box=1e-3)


@torch.no_grad()
def test_bfloat16_chooses_the_proposals_of_float32() -> None:
    model = small_model("deformable_detr_r50_two_stage", num_queries=100)
    replica = optimise(model, torch.device("cpu"), torch.bfloat16)
    torch.manual_seed(0)
    memory = replica.encoder(replica.embed(ImageBatch.from_input(torch.randn(2, 3, 160, 192))))
    assert memory.tokens.dtype == torch.bfloat16
    exact = with_best_proposals(model.queries)
    wanted = exact(memory.with_tokens(memory.tokens.float())).tokens
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(replica.queries(memory).tokens, wanted)
        assert not torch.equal(exact(memory).tokens, wanted)  # scores in bfloat16 choose others

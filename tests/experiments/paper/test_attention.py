"""Attention over epochs: the measures on cases that can be told beforehand, and a run that goes on."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from deformable_detr.classification import build_classification
from deformable_detr.config import RunConfig
from deformable_detr.detections import ClassTable
from deformable_detr.inference.detector import Detector
from deformable_detr.inference.loading import new_checkpoint
from deformable_detr.inference.recording import DenseLayer, SampledLayer
from deformable_detr.loss import SetCriterion
from deformable_detr.structures import ImageBatch, Target
from experiments.paper.__main__ import main
from experiments.paper.attention import (
    _attention,
    attention_of,
    gradient_of,
    tokens_inside,
    weights_of,
)
from experiments.paper.rows import RecipeRow
from tests.support.tiny import as_detr, changed_data, tiny_config


def tiny_detector(config: RunConfig) -> Detector:
    torch.manual_seed(0)
    classes = ClassTable.from_names(["a", "b"])
    return Detector.of(new_checkpoint(config.model, classes, config.data, "tiny", None), "cpu")


def test_equal_weights_have_full_entropy_and_one_key_has_none() -> None:
    equal = _attention("decoder", 1, torch.full((5, 8), 1 / 8), tokens=20)
    assert (equal.keys, equal.tokens) == (8, 20)
    assert equal.entropy == pytest.approx(1)
    assert equal.effective_keys == pytest.approx(8)
    assert equal.largest_weight == pytest.approx(1 / 8)
    one = _attention("decoder", 1, torch.eye(8), tokens=20)
    assert (one.entropy, one.effective_keys, one.largest_weight) == (0, 1, 1)
    # A key of weight 0 adds nothing, whatever its logarithm is.
    two = _attention("encoder", 1, torch.tensor([[0.5, 0.5, 0.0, 0.0]]), tokens=4)
    assert two.entropy == pytest.approx(math.log(2) / math.log(4))


def test_weights_of_both_kinds_are_rows_that_sum_to_one() -> None:
    dense = torch.rand(2, 3, 4, 7).softmax(-1)
    assert weights_of(DenseLayer(dense)).shape == (24, 7)
    sampled = torch.rand(2, 3, 4, 2 * 5).softmax(-1).view(2, 3, 4, 2, 5)
    rows = weights_of(SampledLayer(torch.empty(0), torch.empty(0), sampled))
    assert rows.shape == (24, 10)
    assert torch.allclose(rows.sum(-1), torch.ones(24))


def test_as_initialised_deformable_attention_is_equal_over_its_few_keys() -> None:
    config = tiny_config()
    detector = tiny_detector(config)
    layers = attention_of(detector, ImageBatch.from_images([torch.randn(3, 64, 80)]))
    assert [layer.stage for layer in layers] == ["encoder", "decoder", "decoder"]
    for layer in layers:
        assert layer.keys == config.model.num_levels * config.model.num_points
        assert layer.entropy == pytest.approx(1)  # its weights start alike (specification §3.1) …
        assert layer.effective_keys < 0.1 * layer.tokens  # … but there are few


def test_as_initialised_dense_attention_is_spread_over_all_keys() -> None:
    detector = tiny_detector(as_detr(tiny_config()))
    for layer in attention_of(detector, ImageBatch.from_images([torch.randn(3, 128, 160)])):
        assert layer.keys == layer.tokens == 4 * 5
        assert layer.entropy > 0.9


@pytest.mark.parametrize("change", [lambda config: config, as_detr])
def test_the_gradient_is_that_of_the_loss_with_respect_to_the_memory(change: Any) -> None:  # type: ignore[no-untyped-def]
    config = change(tiny_config(dropout=0.0))
    detector = tiny_detector(config)
    batch = ImageBatch.from_images([torch.randn(3, 96, 96)])
    target = Target(torch.tensor([1]), torch.tensor([[0.5, 0.5, 0.4, 0.4]]))
    criterion = SetCriterion(build_classification(detector.config, config.train.loss), config.train.loss)
    found = gradient_of(detector, criterion, batch, target)
    assert found.per_key > 0
    assert found.focus > 0
    # By finite differences of the loss along the gradient's own direction, through hooks on the encoder.
    model = detector.model.eval().double()
    batch = ImageBatch(batch.pixels.double(), batch.mask)
    memory = model.encoder(model.embed(batch)).tokens.detach()

    def loss(tokens: torch.Tensor) -> torch.Tensor:
        hook = model.encoder.register_forward_hook(
            lambda _, __, output: type(output)(**{**vars(output), "tokens": tokens})
        )
        try:
            return criterion(model(batch), [target]).total
        finally:
            hook.remove()

    tokens = memory.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(tokens), tokens)
    assert float(gradient[0].norm(dim=-1).mean()) == pytest.approx(found.per_key, rel=1e-3)


def test_tokens_inside_boxes() -> None:
    detector = tiny_detector(as_detr(tiny_config()))
    batch = ImageBatch.from_images([torch.zeros(3, 128, 128)])  # 4 x 4 tokens
    with torch.no_grad():
        memory = detector.model.embed(batch)
    inside = tokens_inside(memory, torch.tensor([[0.25, 0.25, 0.5, 0.5]])).view(4, 4)
    assert inside.nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_a_run_is_measured_at_each_epoch_and_continues(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def tiny(self: RecipeRow, scale: str, epochs: int | None, seed: int) -> RunConfig:
        config = tiny_config(epochs=epochs, seed=seed, schedule="step", lr_drop_epochs=(1,))
        return as_detr(config) if self.recipe.startswith("detr") else config

    monkeypatch.setattr(RecipeRow, "config", tiny)
    command = ["attention", str(tiny_data), "--output", str(tmp_path), "--pictures", "2"]
    command += ["--epochs", "2", "--device", "cpu"]
    assert main(command) == 0
    content = json.loads((tmp_path / "attention.json").read_text())
    assert [(each["row"], each["epoch"], each["updates"]) for each in content["moments"]] == [
        ("detr_r50_dc5", 0, 0),
        ("detr_r50_dc5", 1, 6),
        ("detr_r50_dc5", 2, 12),
        ("deformable_detr_r50", 0, 0),
        ("deformable_detr_r50", 1, 6),
        ("deformable_detr_r50", 2, 12),
    ]
    assert content["moments"][0]["AP"] is None
    assert content["moments"][1]["AP"] is not None
    assert (tmp_path / "attention.svg").is_file()
    # The same run, not two: the schedule's drop came after epoch 1 of 2.
    run = tmp_path / "runs" / "small" / "attention-deformable_detr_r50-2ep-seed1"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rates = {row["epoch"]: row["learning_rate"] for row in rows if row["kind"] == "train"}
    name = next(iter(rates[0]))
    assert rates[1][name] == pytest.approx(0.1 * rates[0][name])
    # Again, and with other pictures: nothing is trained, each epoch is measured on its own model.
    trained: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(RecipeRow, "train", lambda *_: trained.append(1))
        (run / "attention" / "1-2.json").unlink()
        assert main(command) == 0
        assert json.loads((tmp_path / "attention.json").read_text())["moments"] == content["moments"]
        assert main([*command, "--pictures", "3"]) == 0
    assert not trained
    more = json.loads((tmp_path / "attention.json").read_text())["moments"]
    assert [each["AP"] for each in more] == [each["AP"] for each in content["moments"]]
    assert len({each["gradient"]["per_key"] for each in more}) == 6
    assert more[0]["gradient"] != content["moments"][0]["gradient"]
    capsys.readouterr()
    # A model that is gone cannot be had from a run that is past it.
    shutil.rmtree(run / "attention" / "1")
    assert main(command) == 2
    assert "is past epoch 1, whose model is not in" in capsys.readouterr().err
    other = changed_data(
        tiny_data, tmp_path / "other", lambda content: content["categories"][0].update(name="x")
    )
    assert main([*command[:1], str(other), *command[2:]]) == 2
    assert "is a run on other data" in capsys.readouterr().err
    assert main([*command, "--rows", "faster_rcnn_r50_fpn"]) == 2
    assert "there is no row faster_rcnn_r50_fpn" in capsys.readouterr().err

"""Faster R-CNN behind this package's interfaces: it learns, stops and goes on, and its detections are
torchvision's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from deformable_detr.config import RunConfig
from deformable_detr.errors import UserError
from deformable_detr.run_folder.reading import read_starts
from deformable_detr.structures import ImageBatch, Target
from experiments.paper.faster_rcnn import FasterRcnn, train_faster_rcnn
from experiments.paper.rows import read_run
from tests.support.tiny import tiny_config


def config(epochs: int = 1) -> RunConfig:
    return tiny_config(epochs=epochs, lr=0.01, lr_rule="none", warmup_steps=0, hidden_dim=32)


@pytest.fixture
def model() -> FasterRcnn:
    torch.manual_seed(0)
    return FasterRcnn(config(), num_classes=6)


def batch() -> ImageBatch:
    torch.manual_seed(1)
    return ImageBatch.from_images([torch.randn(3, 64, 80), torch.randn(3, 48, 64)])


def test_predictions_are_torchvisions_detections(model: FasterRcnn) -> None:
    model.eval()
    model.network.roi_heads.score_thresh = 0.0
    images = batch()
    with torch.no_grad():
        (prediction,) = model(images).predictions
        expected = model.network([images.pixels[0], images.pixels[1, :, :48, :64]])
    assert prediction.logits.shape == (2, 100, 6)
    for index, (height, width) in enumerate([(64, 80), (48, 64)]):
        found = expected[index]
        count = len(found["scores"])
        assert count > 0
        scores, labels = prediction.logits[index, :count].sigmoid().max(-1)
        torch.testing.assert_close(scores, found["scores"])
        assert torch.equal(labels, found["labels"] - 1)
        centre = prediction.boxes_cxcywh[index, :count, :2] * torch.tensor([width, height])
        torch.testing.assert_close(centre, (found["boxes"][:, :2] + found["boxes"][:, 2:]) / 2)
        assert (prediction.logits[index, count:].sigmoid() < 1e-9).all()


def test_losses_reach_every_learning_parameter(model: FasterRcnn) -> None:
    targets = [
        Target(torch.tensor([2]), torch.tensor([[0.5, 0.5, 0.4, 0.4]])),
        Target(torch.tensor([0, 1]), torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.5, 0.5, 0.0, 0.2]])),
    ]
    losses = model.train().losses(batch(), targets)
    assert set(losses) == {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    torch.stack(list(losses.values())).sum().backward()
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing


@pytest.mark.slow
def test_a_run_is_logged_and_continues_after_its_last_epoch(tiny_data: Path, tmp_path: Path) -> None:
    for epochs in (1, 2):
        train_faster_rcnn(tiny_data, config(epochs), tmp_path, "cpu")
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    evaluations = [row for row in rows if row["kind"] == "evaluation"]
    assert [row["epoch"] for row in evaluations] == [0, 1]
    assert all(0 <= row["AP"] <= 1 for row in evaluations)
    steps = [row["step"] for row in rows if row["kind"] == "train"]
    assert steps == list(range(1, 13))  # six updates an epoch, none twice
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert sum(losses[-3:]) < sum(losses[:3])
    assert read_run(tmp_path).finished  # type: ignore[union-attr]
    assert [start["step"] for start in read_starts(tmp_path)] == [0, 6]
    state = tmp_path / "training_state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"training_state\.pt cannot be read .*: remove the folder"):
        train_faster_rcnn(tiny_data, config(3), tmp_path, "cpu")

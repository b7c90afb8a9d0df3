"""One update alone, and updates in micro-batches; losses and gradients that are not finite."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import deformable_detr as dd
from deformable_detr.cli import main
from deformable_detr.config import RunConfig
from deformable_detr.errors import NonFiniteError
from deformable_detr.loss import Losses, SetCriterion
from deformable_detr.training import train
from tests.support.tiny import (
    as_detr,
    assert_same_movement,
    changed_data,
    repeatable_in_parts,
    rows,
    tiny_config,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("family", [lambda config: config, as_detr], ids=["focal", "softmax"])
def test_micro_batches_give_the_weights_of_one_batch(
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    family: Callable[[RunConfig], RunConfig],
) -> None:
    # AdamW divides a gradient that is nothing but rounding by itself; plain descent shows what it is.
    monkeypatch.setattr(torch.optim, "AdamW", torch.optim.SGD)
    data = changed_data(tiny_data, tmp_path / "data", some_images_empty)
    train(data, family(repeatable_in_parts(batch_size=4, max_steps=0)), tmp_path / "start")
    for batch_size, accumulate in ((4, 1), (2, 2), (1, 4)):
        config = family(repeatable_in_parts(batch_size=batch_size, accumulate=accumulate, max_steps=2))
        train(data, config, tmp_path / f"{batch_size}x{accumulate}")
    for parts in ("2x2", "1x4"):
        assert_same_movement(tmp_path / parts, tmp_path / "4x1", tmp_path / "start", 1e-4)
        for mine, theirs in zip(
            rows(tmp_path / parts, "train"), rows(tmp_path / "4x1", "train"), strict=True
        ):
            for name in ("loss", "class", "box", "giou", "gradient_norm"):
                assert mine[name] == pytest.approx(theirs[name], rel=1e-4)


def some_images_empty(content: dict[str, Any]) -> None:
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] % 3]


@pytest.fixture
def broken(whole_run: Path, tmp_path: Path) -> Path:
    """A model whose class heads say NaN."""
    detector = dd.load(whole_run)
    detector.save(tmp_path / "broken")
    tensors = {key: value.clone() for key, value in detector.model.state_dict().items()}
    for key in [key for key in tensors if key.endswith("class_head.bias")]:
        tensors[key].fill_(math.nan)
    save_file(tensors, tmp_path / "broken" / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "broken"


def test_weights_that_are_not_numbers(
    broken: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(NonFiniteError, match=r"update 1: .*image \d+.*lower the learning rate"):
        train(tiny_data, tiny_config(), tmp_path / "python", init_from=broken)
    arguments = ["--init-from", str(broken), "--output", str(tmp_path / "command"), "--data.num_workers", "0"]
    assert main(["train", str(tiny_data), *arguments]) == 1
    error = capsys.readouterr().err
    assert "update 1" in error
    assert "Traceback" not in error


def test_a_learning_rate_that_blows_up(tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"update [2-9]"):
        train(tiny_data, tiny_config(lr=1e30, clip_norm=0.0, warmup_steps=0), tmp_path / "run")


def test_gradients_that_are_not_numbers_do_not_reach_the_weights(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = SetCriterion.__call__

    def with_infinite_slope(self: SetCriterion, output: Any, *rest: Any) -> Losses:
        losses = call(self, output, *rest)
        return replace(losses, total=losses.total + (output.predictions[-1].logits * 0).sum().sqrt())

    monkeypatch.setattr(SetCriterion, "__call__", with_infinite_slope)
    with pytest.raises(NonFiniteError, match=r"update 1: the gradient .*images? \d+"):
        train(tiny_data, tiny_config(), tmp_path / "run")

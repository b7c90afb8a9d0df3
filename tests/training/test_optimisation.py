"""Parameter groups and rates of specification §6, schedules, moving average."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from deformable_detr.config import TrainConfig, recipe
from deformable_detr.models import build_model
from deformable_detr.training.optimisation import (
    batch_size_factor,
    cpu_copy,
    learning_rate_factor,
    parameter_groups,
    update_moving_average,
    use_layout_of_parameters,
)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("deformable_detr_r50", {"base": 15_824_735, "backbone": 23_232_512, "sampling": 790_018}),
        (
            "deformable_detr_r50_single_scale",
            {"base": 10_413_791, "backbone": 23_232_512, "sampling": 197_890},
        ),
        ("deformable_detr_r50_refine", {"base": 16_604_730, "backbone": 23_232_512, "sampling": 790_018}),
        ("deformable_detr_r50_two_stage", {"base": 16_937_113, "backbone": 23_232_512, "sampling": 789_504}),
        ("detr_r50", {"base": 41_302_368 - 23_232_512, "backbone": 23_232_512}),
    ],
)
def test_groups_hold_the_published_numbers_of_parameters(name: str, sizes: dict[str, int]) -> None:
    run = recipe(name)
    with torch.device("meta"):
        model = build_model(run.model)
    groups = parameter_groups(model, run.train)
    assert {group["name"]: sum(p.numel() for p in group["params"]) for group in groups} == sizes
    rates = {group["name"]: group["lr"] for group in groups}
    expected = {"base": 1e-4, "backbone": 1e-5} if name == "detr_r50" else {"base": 2e-4, "backbone": 2e-5}
    assert rates == pytest.approx(expected if name == "detr_r50" else {**expected, "sampling": 2e-5})
    assert all(group["initial_lr"] == group["lr"] for group in groups)


def test_groups_leave_frozen_parameters_out() -> None:
    model = nn.ModuleDict({"backbone": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    model["backbone"].requires_grad_(False)
    assert [group["name"] for group in parameter_groups(model, TrainConfig())] == ["base"]


@pytest.mark.parametrize(("rule", "factor"), [("none", 1.0), ("sqrt", 0.5), ("linear", 0.25)])
def test_batch_size_rules(rule: str, factor: float) -> None:
    config = TrainConfig(lr_rule=rule, lr_batch_size=32)  # type: ignore[arg-type]
    assert batch_size_factor(config, 8) == pytest.approx(factor)
    assert batch_size_factor(config, 32) == 1.0


def test_step_schedule_drops_at_the_start_of_its_epochs() -> None:
    config = TrainConfig(schedule="step", epochs=50, lr_drop_epochs=(40, 45), lr_gamma=0.1)
    factors = [learning_rate_factor(config, step, 100) for step in (0, 3999, 4000, 4499, 4500, 4999)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_cosine_schedule_with_warm_up() -> None:
    config = TrainConfig(schedule="cosine", epochs=11, warmup_steps=10)
    factors = [learning_rate_factor(config, step, 10) for step in range(110)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10] == 1.0
    assert factors[60] == pytest.approx(0.5)
    assert factors[35] == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert 0 < factors[109] < 0.001
    assert learning_rate_factor(config, 110, 10) == pytest.approx(0.0)
    assert learning_rate_factor(config, 500, 10) == pytest.approx(0.0)  # and stays there


def test_max_steps_does_not_change_the_schedule() -> None:
    for schedule in ("step", "cosine"):
        config = TrainConfig(schedule=schedule, epochs=4, lr_drop_epochs=(2,), warmup_steps=3)  # type: ignore[arg-type]
        short = replace(config, max_steps=7)
        for step in range(7):
            assert learning_rate_factor(short, step, 5) == learning_rate_factor(config, step, 5)


def test_warm_up_longer_than_training() -> None:
    config = TrainConfig(schedule="cosine", epochs=1, warmup_steps=50)
    assert learning_rate_factor(config, 9, 10) == pytest.approx(0.2)


def test_moving_average_formula() -> None:
    average, model = nn.Linear(3, 2), nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    for step, decay in ((1, 2 / 11), (8, 0.5), (10_000, 0.99)):
        expected = {
            name: decay * value + (1 - decay) * model.state_dict()[name]
            for name, value in average.state_dict().items()
        }
        update_moving_average(average, model, 0.99, step)
        for name, value in average.state_dict().items():
            torch.testing.assert_close(value, expected[name])


def test_moving_average_leaves_what_is_frozen_exactly_alone() -> None:
    average, model = nn.Linear(3, 2), nn.Linear(3, 2)
    average.load_state_dict(model.state_dict())
    for step in range(1, 20):
        update_moving_average(average, model, 0.9, step)
    assert torch.equal(average.weight, model.weight)


def test_a_copy_does_not_change_with_the_model() -> None:
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    copy = cpu_copy(model.state_dict())
    before = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.zero_()
    assert torch.equal(copy["weight"], before)
    assert copy["weight"].is_contiguous()


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_a_resumed_optimizer_fits_weights_in_another_layout(layout: torch.memory_format) -> None:
    """As if a run with depthwise convolutions is resumed on another kind of device."""
    other = torch.contiguous_format if layout is torch.channels_last else torch.channels_last
    torch.manual_seed(0)
    start, gradients = torch.randn(8, 3, 3, 3), torch.randn(2, 8, 3, 3, 3)

    def step(weight: nn.Parameter, optimizer: torch.optim.Optimizer, gradient: Tensor) -> None:
        weight.grad = torch.empty_like(weight).copy_(gradient)
        optimizer.step()

    weights = [nn.Parameter(start.clone(memory_format=layout)) for _ in range(2)]
    optimizers = [torch.optim.AdamW([weight], lr=0.1, fused=True) for weight in weights]
    for weight, optimizer in zip(weights, optimizers, strict=True):
        step(weight, optimizer, gradients[0])
    resumed = nn.Parameter(weights[1].detach().clone(memory_format=other))
    optimizer = torch.optim.AdamW([resumed], lr=0.1, fused=True)
    optimizer.load_state_dict(optimizers[1].state_dict())
    use_layout_of_parameters(optimizer)
    step(weights[0], optimizers[0], gradients[1])
    step(resumed, optimizer, gradients[1])
    torch.testing.assert_close(resumed, weights[0])

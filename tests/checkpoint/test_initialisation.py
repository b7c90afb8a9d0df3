"""checkpoint/initialisation.py: models built without drawing differ from others only in their weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from deformable_detr.checkpoint.contents import empty_model
from deformable_detr.checkpoint.initialisation import no_random_weights
from deformable_detr.config import recipe

DRAWN: dict[str, Callable[[], Tensor]] = {
    "linear": lambda: nn.Linear(3, 4).weight,
    "convolution": lambda: nn.Conv2d(3, 4, 3).weight,
    "embedding": lambda: nn.Embedding(3, 4).weight,
    "attention": lambda: nn.MultiheadAttention(4, 2).in_proj_weight,
    "uniform": lambda: nn.init.uniform_(torch.zeros(3, 4)),
    "normal": lambda: nn.init.normal_(torch.zeros(3, 4)),
    "xavier": lambda: nn.init.xavier_uniform_(torch.zeros(3, 4)),
    "kaiming": lambda: nn.init.kaiming_normal_(torch.zeros(3, 4)),
    "truncated": lambda: nn.init.trunc_normal_(torch.zeros(3, 4)),
}


@pytest.mark.parametrize("name", DRAWN)
def test_nothing_is_drawn(name: str) -> None:
    before = torch.get_rng_state()
    with no_random_weights():
        inside = torch.get_rng_state()
        DRAWN[name]()
        assert torch.equal(torch.get_rng_state(), inside)
    assert torch.equal(torch.get_rng_state(), before)
    DRAWN[name]()
    assert not torch.equal(torch.get_rng_state(), before)  # outside it is
    torch.set_rng_state(before)


def test_constants_are_set_as_usual() -> None:
    with no_random_weights():
        assert nn.LayerNorm(4).weight.tolist() == [1, 1, 1, 1]
        assert nn.init.constant_(torch.empty(2), 3.0).tolist() == [3, 3]
        assert torch.arange(3).tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["deformable_detr_r50_plus", "deformable_detr_lite"])
def test_building_an_empty_model_leaves_the_generator_alone(name: str) -> None:
    """Training draws its routes after it has read the weights to start from."""
    before = torch.get_rng_state()
    model = empty_model(recipe(name).model)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(value.is_meta for value in model.state_dict().values())

"""The receptive field follows the object's scale (docs/deform_conv.md): trained on discs of two sizes, a
deformable convolution reads farther out on the large ones. The task and the training are the figure's."""

from __future__ import annotations

import math
from typing import Any

import pytest

from docs.figures.receptive_field import (
    PLAIN_REACH,
    SIDE,
    SizeNet,
    draw_figure,
    mean_errors,
    mean_reaches,
    train,
    unseen_scenes,
)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_kernel_learns_to_reach_farther_on_large_objects(seed: int) -> None:
    """After 40 updates, on scenes not trained on: 1.5 times as far. Untrained it is a plain kernel."""
    scenes = unseen_scenes(8)
    assert mean_reaches(SizeNet(), scenes) == pytest.approx((PLAIN_REACH, PLAIN_REACH), rel=1e-5)
    large, small = mean_reaches(train(seed, steps=40), scenes)
    assert large > 1.25 * small
    assert small > PLAIN_REACH


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_reaching_farther_determines_the_size(seed: int) -> None:
    """After 300 updates as in the figure: 1.8 to 1.9 times as far, a third of the error."""
    scenes = unseen_scenes()
    deformable, plain = train(seed, steps=300), train(seed, steps=300, deformable=False)
    large, small = mean_reaches(deformable, scenes)
    assert large > 1.5 * small
    for error, plain_error in zip(mean_errors(deformable, scenes), mean_errors(plain, scenes), strict=True):
        assert error < plain_error / 2


def test_scenes_hold_one_large_disc_and_small_ones() -> None:
    scenes = unseen_scenes(4)
    assert scenes.pictures.shape == (4, 1, SIDE, SIDE)
    for picture, radii in zip(scenes.pictures[:, 0], scenes.radii, strict=True):
        sizes = radii.unique()[1:]
        assert (sizes >= 7).sum() == 1
        assert len(sizes) >= 5
        for size in sizes.tolist():  # as large as its label says, and white
            assert (radii == size).sum().item() == pytest.approx(math.pi * size**2, abs=2 * size + 1)
            assert picture[radii == size].mean() > 0.7
        assert picture[radii == 0].mean().abs() < 0.1


def test_the_figure_is_drawn(tmp_path: Any) -> None:  # type: ignore[no-untyped-def]
    pytest.importorskip("matplotlib")
    draw_figure([SizeNet(), SizeNet(), SizeNet()], unseen_scenes(2), 1, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 20_000

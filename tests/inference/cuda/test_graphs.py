"""Which calls are replayed, from which buffers, and what is kept; a stand-in records instead of a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deformable_detr.inference.cuda.graphs import Function, Graphs, Inputs, Replay


def sums(pixels: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    return pixels.sum(0) + mask.sum(), pixels * 2


class Recording(Replay):
    """Fills the same output tensors again at every replay, as a CUDA graph does."""

    made: list[Recording]

    def __init__(self, function: Function, inputs: Inputs):
        self.function = function
        self.inputs = tuple(each.clone() for each in inputs)
        self.outputs = function(*self.inputs)
        self.replays = 0
        self.made.append(self)

    def replay(self) -> None:
        self.replays += 1
        for buffer, value in zip(self.outputs, self.function(*self.inputs), strict=True):
            buffer.copy_(value)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Recording]:
    recordings: list[Recording] = []
    monkeypatch.setattr(Recording, "made", recordings, raising=False)
    return recordings


def inputs(width: int, seed: int = 0) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, width, generator=generator), torch.rand(width, generator=generator) > 0.5


def replays(made: list[Recording]) -> list[int]:
    return [each.replays for each in made]


def test_a_shape_that_comes_again_is_recorded_once(made: list[Recording]) -> None:
    graphs = Graphs(sums, Recording)
    for seed in range(4):
        for width in (5, 6):
            given = inputs(width, seed)
            for found, wanted in zip(graphs(*given), sums(*given), strict=True):
                assert torch.equal(found, wanted)
    assert replays(made) == [3, 3]  # each shape was computed plainly at first


def test_results_are_the_callers_own(made: list[Recording]) -> None:
    graphs = Graphs(sums, Recording)
    graphs(*inputs(5))
    first = graphs(*inputs(5, seed=1))
    graphs(*inputs(5, seed=2))
    assert torch.equal(first[0], sums(*inputs(5, seed=1))[0])
    assert replays(made) == [2]


def test_another_type_is_another_shape(made: list[Recording]) -> None:
    graphs = Graphs(sums, Recording)
    pixels, mask = inputs(5)
    for dtype in (torch.float32, torch.float64, torch.float64):
        assert graphs(pixels.to(dtype), mask)[1].dtype == dtype
    assert replays(made) == [1]


def test_the_graphs_used_last_are_kept(made: list[Recording]) -> None:
    graphs = Graphs(sums, Recording, kept=2)
    for width in (5, 5, 6, 6, 5):
        graphs(*inputs(width))
    for width in (7, 7):  # 6 has to go: it was used before 5 was
        graphs(*inputs(width))
    graphs(*inputs(5))
    assert replays(made) == [3, 1, 1]
    for _ in range(2):
        graphs(*inputs(6))
    assert replays(made) == [3, 1, 1, 1]


def test_what_cannot_be_recorded_is_computed_after_one_warning() -> None:
    def refuse(function: Function, given: Inputs) -> Replay:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    graphs = Graphs(sums, refuse)
    graphs(*inputs(5))
    with pytest.warns(UserWarning, match="cannot be captured.*operation not permitted when"):
        assert torch.equal(graphs(*inputs(5))[0], sums(*inputs(5))[0])
    for _ in range(2):  # warnings are errors here
        graphs(*inputs(6))

"""The measured costs against the formulas of the paper's appendix A.1, and the starts against 1/N."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.paper.__main__ import main
from experiments.paper.complexity import (
    KINDS,
    C,
    Cost,
    K,
    M,
    exponents,
    measure_costs,
    measure_starts,
    multiply_adds,
)


def test_multiply_adds_by_the_formulas() -> None:
    for side in (3, 8):
        N = side * side
        dense = 4 * N * C * C + 2 * N * N * C
        assert multiply_adds("dense", side) == multiply_adds("dense_fused", side) == dense
        assert multiply_adds("deformable", side) == N * (2 * C * C + 3 * C * M * K + 5 * K * C)


def test_only_the_matrix_of_weights_is_quadratic_in_memory() -> None:
    costs = {(cost.attention, cost.tokens): cost for cost in measure_costs([8, 16], repeat=1)}
    assert len(costs) == 2 * len(KINDS)
    assert costs["dense", 256].kept_bytes >= 4 * M * 256 * 256
    for name in ("dense_fused", "deformable"):
        assert costs[name, 256].kept_bytes < 4.1 * costs[name, 64].kept_bytes
    assert all(cost.seconds > 0 for cost in costs.values())


def test_exponents_are_slopes() -> None:
    costs = [Cost("a", n, multiply_adds=n * n, kept_bytes=3 * n, seconds=n**1.5) for n in (4, 16, 64)]
    assert exponents(costs) == {"a": {"multiply_adds": 2.0, "kept_bytes": 1.0, "seconds": 1.5}}


def test_dense_attention_starts_near_one_over_n_and_deformable_does_not() -> None:
    starts = {(start.attention, start.tokens): start for start in measure_starts([8, 16])}
    few, many = starts["dense", 64], starts["dense", 256]
    assert (few.keys, many.keys) == (64, 256)
    assert many.entropy > 0.9
    assert many.largest_weight < 10 / 256
    assert many.gradient_per_key == pytest.approx(few.gradient_per_key / 4, rel=0.3)
    for tokens in (64, 256):
        start = starts["deformable", tokens]
        assert (start.keys, start.entropy, start.largest_weight) == (K, 1.0, 1 / K)
    assert starts["deformable", 256].gradient_per_key == pytest.approx(
        starts["deformable", 64].gradient_per_key, rel=0.3
    )


def test_the_command_writes_numbers_and_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--sides", "4", "6", "--repeat", "1", "--output", str(tmp_path)]
    assert main(["complexity", *arguments]) == 0
    content = json.loads((tmp_path / "complexity.json").read_text())
    assert {cost["tokens"] for cost in content["costs"]} == {16, 36}
    for name in ("complexity", "attention_start"):
        for suffix in ("png", "svg"):
            assert (tmp_path / f"{name}.{suffix}").stat().st_size > 5000
    assert main(["complexity", "--sides", "4", "4"]) == 2
    assert "--sides needs two different sides" in capsys.readouterr().err

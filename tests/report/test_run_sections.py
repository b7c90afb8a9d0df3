"""The section on training: which losses of a run are drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from deformable_detr.report.run_sections import training_section
from deformable_detr.run_folder.reading import read_history
from tests.support.made_runs import make_run
from tests.support.tiny import tiny_config


def titles(tmp_path: Path, names: list[str]) -> list[str]:
    history = read_history(make_run(tmp_path / "run", tiny_config(), [0.1]))
    assert history is not None
    updates = tuple(
        {
            "step": step,
            "epoch": 0,
            "loss": 3.0,
            **{f"{term}{name}": 1.0 for name in names for term in ("class", "box")},
        }
        for step in (1, 2)
    )
    figures = training_section(replace(history, updates=updates)).parts["figures"]
    return [title for title, _, _ in figures if title.startswith("Loss terms")]


def test_routes_are_drawn_apart_from_the_models_own_losses(tmp_path: Path) -> None:
    names = ["", "_0", "_10", "_proposals", "_no_self_attention", "_no_self_attention_0"]
    names += ["_instructed", "_instructed_1", "_instructed_proposals", "_denoising"]
    own = "Loss terms of the last decoder layer"
    assert titles(tmp_path, names) == [
        own,
        f"{own}, route no_self_attention",
        f"{own}, route instructed",
        f"{own}, route denoising",
    ]


def test_a_run_without_routes_has_one_figure_of_terms(tmp_path: Path) -> None:
    assert titles(tmp_path, ["", "_0", "_proposals"]) == ["Loss terms of the last decoder layer"]

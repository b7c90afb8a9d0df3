"""Figure 3: what is drawn for given `metrics.jsonl`."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from PIL import Image

from deformable_detr.config import override, recipe
from deformable_detr.errors import UserError
from experiments.paper.__main__ import main
from experiments.paper.figure3 import draw, read_curves
from tests.support.made_runs import make_run


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two seeds of one experiment and one run of another, longer."""
    deformable, detr = override(recipe("deformable_detr_r50"), {"epochs": 3}), recipe("detr_r50")
    return [
        make_run(tmp_path / "a", deformable, [0.1, 0.2, 0.3]),
        make_run(tmp_path / "b", deformable, [0.2, 0.3, 0.5]),
        make_run(tmp_path / "c", detr, [0.0, 0.05, 0.1, 0.15]),
    ]


def test_curves_are_means_of_seeds_in_percent(runs: list[Path]) -> None:
    axes = draw(read_curves(runs)).axes[0]
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}  # type: ignore[union-attr]
    assert list(lines) == ["deformable_detr_r50, 3 epochs", "detr_r50, 500 epochs"]
    for found, expected in zip(
        lines["deformable_detr_r50, 3 epochs"], [(1, 15), (2, 25), (3, 40)], strict=True
    ):
        assert found == pytest.approx(expected)
    assert [epoch for epoch, _ in lines["detr_r50, 500 epochs"]] == [1, 2, 3, 4]
    assert axes.get_xlabel() == "epoch"
    assert axes.get_ylabel() == "AP (%)"
    assert len(axes.collections) == 1  # the band of the two seeds
    assert axes.get_legend() is not None


def test_other_metrics_labels_and_published_points(runs: list[Path]) -> None:
    curves = read_curves([runs[0], runs[2] / "metrics.jsonl"], ["ours", "theirs"], "APl")
    axes = draw(curves, "APl", published=True).axes[0]
    labels = [line.get_label() for line in axes.get_lines()]
    assert labels == ["ours", "theirs", "Deformable DETR (paper, COCO)", "DETR-DC5 (paper, COCO)"]
    assert axes.get_lines()[0].get_ydata()[-1] == pytest.approx(60)  # type: ignore[index]
    assert axes.get_ylabel() == "APl (%)"


def test_the_command_writes_png_svg_and_numbers(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["figure3", *map(str, runs), "--output", str(out)]) == 0
    assert str(out / "figure3.png") in capsys.readouterr().out
    with Image.open(out / "figure3.png") as picture:
        assert picture.width >= 1000  # 3.5 inches at 300 dots
    svg = (out / "figure3.svg").read_bytes()
    assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    assert b"AP (%)" in svg
    content = json.loads((out / "figure3.json").read_text())
    assert content["curves"]["detr_r50, 500 epochs"] == [{"1": 0.0, "2": 0.05, "3": 0.1, "4": 0.15}]
    assert main(["figure3", *map(str, runs), "--output", str(out)]) == 0
    assert (out / "figure3.svg").read_bytes() == svg


def test_what_cannot_be_drawn_is_refused(runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "late.jsonl").write_text('{"kind": "evaluation", "epoch": 99, "step": 1, "AP": 0.5}\n')
    (tmp_path / "poor.jsonl").write_text('{"kind": "evaluation", "epoch": 1, "step": 1}\n')
    for arguments, words in (
        (([tmp_path / "nothing"],), r"there is no .*nothing: name a run folder"),
        ((runs, ["one"]), "1 labels for 3 runs"),
        ((runs, (), "F1"), "must be one of AP, AP50"),
        (([make_run(tmp_path / "new", recipe("detr_r50"), [])],), "was not evaluated yet"),
        ((runs, (), "APs"), "no object to measure APs on"),
        (([runs[0], tmp_path / "late.jsonl"], ("x", "x")), "the runs of x were evaluated at no common epoch"),
        (([tmp_path / "poor.jsonl"],), r"poor\.jsonl has an evaluation without epoch and AP \('AP'\)"),
    ):
        with pytest.raises(UserError, match=words):
            read_curves(*arguments)  # type: ignore[arg-type]
    (tmp_path / "bad.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"bad\.jsonl, line 1 is not a row"):
        read_curves([tmp_path / "bad.jsonl"])

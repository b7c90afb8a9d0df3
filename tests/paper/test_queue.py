"""The queue: what the committed file asks for, and that finished runs are kept and stopped ones go on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from deformable_detr.cli import main
from deformable_detr.config import RunConfig
from deformable_detr.errors import UserError
from deformable_detr.paper.queue import ROWS, read_queue
from deformable_detr.paper.rows import RecipeRow
from tiny import tiny_config

QUEUE = Path(__file__).resolve().parents[2] / "benchmarks" / "paper" / "queue.yaml"


def test_the_committed_queue_can_be_run_and_fits_its_budget() -> None:
    data, runs = read_queue(QUEUE)
    assert {"small_shapes", "bccd"} == set(data)
    assert len({run.name for run in runs}) == len(runs)
    for run in runs:
        config = run.config
        assert (config.train.epochs, config.train.seed) == (run.epochs, run.seed)
        assert run.epochs % run.evaluate_every == 0
    entries = yaml.safe_load(QUEUE.read_text())["runs"]
    assert max(entry["minutes"] for entry in entries) <= 90
    assert 600 <= sum(entry["minutes"] * len(entry["seeds"]) for entry in entries) <= 900


def test_a_queue_runs_each_run_once(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def tiny(self: RecipeRow, scale: str, epochs: int | None, seed: int) -> RunConfig:
        return tiny_config(epochs=epochs, seed=seed)

    monkeypatch.setattr(RecipeRow, "config", tiny)
    run = {"row": "detr_r50", "data": "tiny", "epochs": 2, "seeds": [7], "evaluate_every": 2}
    file = tmp_path / "queue.yaml"
    file.write_text(yaml.safe_dump({"data": {"tiny": str(tiny_data)}, "runs": [run]}))
    command = ["paper", "queue", str(file), "--output", str(tmp_path / "o"), "--device", "cpu"]
    command += ["--results", str(tmp_path / "r")]
    assert main([*command, "--list"]) == 0
    assert "to do     tiny-detr_r50-2ep-seed7" in capsys.readouterr().out
    assert main(command) == 0
    result = json.loads((tmp_path / "r" / "tiny-detr_r50-2ep-seed7.json").read_text())
    assert (result["row"], result["seed"], result["epochs"]) == ("detr_r50", 7, 2)
    assert [row["epoch"] for row in result["curve"]] == [2]
    assert result["AP"] == result["curve"][-1]["AP"]
    metrics = tmp_path / "o" / "tiny" / "runs" / "small" / "detr_r50-2ep-seed7" / "metrics.jsonl"
    before = metrics.stat().st_mtime_ns
    assert main(command) == 0
    assert "finished  tiny-detr_r50-2ep-seed7" in capsys.readouterr().out
    assert metrics.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("- a", "is not a queue of runs"),
        ("{data: {}, runs: [{row: detr_r50}]}", "misses data, epochs, seeds"),
        ("{data: {}, runs: [{row: a, data: b, epochs: 1, seeds: [1]}]}", "there is no row a"),
        ("{data: {c: x}, runs: [{row: detr_r50, data: b, epochs: 1, seeds: [1]}]}", "no data set b among c"),
        ("{data: {}, runs: [{row: a, data: b, epochs: 1, seeds: [1], x: 1}]}", "has unknown fields x"),
    ],
)
def test_a_wrong_queue_is_refused(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "q.yaml").write_text(content)
    with pytest.raises(UserError, match=words):
        read_queue(tmp_path / "q.yaml")


def test_every_row_of_the_first_two_tables_can_be_queued() -> None:
    assert len(ROWS) == 15

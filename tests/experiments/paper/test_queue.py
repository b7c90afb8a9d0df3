"""The queue: what the committed file asks for, and that finished runs are kept and stopped ones go on."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock

from deformable_detr.config import RunConfig
from deformable_detr.data.drawn import generate
from deformable_detr.errors import UserError
from deformable_detr.run_folder.log import TrainingLog
from experiments.paper import table1, table2
from experiments.paper.__main__ import main
from experiments.paper.queue import ROWS, read_queue
from experiments.paper.rows import RecipeRow
from tests.support.tiny import tiny_config

QUEUE = Path(__file__).resolve().parents[3] / "experiments" / "paper" / "queue.yaml"


def test_the_committed_queue_can_be_run_and_fits_its_budget() -> None:
    data, runs = read_queue(QUEUE)
    assert {run.data for run in runs} <= set(data)
    assert len({run.name for run in runs}) == len(runs)
    for run in runs:
        config = run.config
        assert (config.train.epochs, config.train.seed) == (run.epochs, run.seed)
        assert run.epochs % run.evaluate_every == 0
    entries = yaml.safe_load(QUEUE.read_text())["runs"]
    assert max(entry["minutes"] for entry in entries) <= 90
    total = sum(entry["minutes"] * len(entry["seeds"]) for entry in entries)
    stated = re.search(r"about (\d+) hours for all", QUEUE.read_text())
    assert stated is not None
    assert total / 60 / 2 <= int(stated[1]) <= 12  # two at a time


def test_a_queue_runs_each_run_once(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def tiny(self: RecipeRow, scale: str, epochs: int | None, seed: int) -> RunConfig:
        return tiny_config(epochs=epochs, seed=seed)

    monkeypatch.setattr(RecipeRow, "config", tiny)
    run = {"row": "detr_r50", "data": "tiny", "epochs": 2, "seeds": [7], "evaluate_every": 2}
    file = tmp_path / "queue.yaml"
    file.write_text(yaml.safe_dump({"data": {"tiny": str(tiny_data)}, "runs": [run]}))
    command = ["queue", str(file), "--output", str(tmp_path / "o"), "--device", "cpu"]
    command += ["--results", str(tmp_path / "r")]
    assert main([*command, "--list"]) == 0
    assert "to do     tiny-detr_r50-2ep-seed7" in capsys.readouterr().out
    assert not (tmp_path / "o").exists()  # to list is to leave no trace
    assert main(command) == 0
    result = json.loads((tmp_path / "r" / "tiny-detr_r50-2ep-seed7.json").read_text())
    assert (result["row"], result["seed"], result["epochs"]) == ("detr_r50", 7, 2)
    assert [row["epoch"] for row in result["curve"]] == [2]
    assert result["AP"] == result["curve"][-1]["AP"]
    assert (
        result["command"] == f"python -m experiments.paper {' '.join(command[:4])} --results {tmp_path / 'r'}"
    )
    metrics = tmp_path / "o" / "tiny" / "runs" / "small" / "detr_r50-2ep-seed7" / "metrics.jsonl"
    before = metrics.stat().st_mtime_ns
    assert main(command) == 0
    assert "finished  tiny-detr_r50-2ep-seed7" in capsys.readouterr().out
    assert metrics.stat().st_mtime_ns == before


@pytest.fixture
def queue(tmp_path: Path, tiny_data: Path) -> list[str]:
    """A command whose queue has two runs."""
    run = {"row": "detr_r50", "data": "tiny", "epochs": 1, "seeds": [1, 2]}
    file = tmp_path / "queue.yaml"
    file.write_text(yaml.safe_dump({"data": {"tiny": str(tiny_data)}, "runs": [run]}))
    output, results = str(tmp_path / "o"), str(tmp_path / "r")
    return ["queue", str(file), "--output", output, "--results", results, "--device", "cpu"]


def test_a_run_in_work_is_left_to_whoever_has_it(
    queue: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(RecipeRow, "config", lambda self, *_: tiny_config(epochs=1))
    lock = tmp_path / "o" / "locks" / "tiny-detr_r50-1ep-seed1.lock"
    lock.parent.mkdir(parents=True)
    run = tmp_path / "o" / "tiny" / "runs" / "small" / "detr_r50-1ep-seed1"
    run.mkdir(parents=True)  # as its holder has made it
    with FileLock(lock):
        assert main([*queue, "--list"]) == 0
        assert main(queue) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[:2] == ["in work   tiny-detr_r50-1ep-seed1", "to do     tiny-detr_r50-1ep-seed2"]
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["tiny-detr_r50-1ep-seed2.json"]
    assert main(queue) == 0  # the lock is gone with its holder
    assert len(list((tmp_path / "r").iterdir())) == 2


def test_a_stopped_run_continues(
    queue: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(RecipeRow, "config", lambda self, *_: tiny_config(epochs=1))
    written = TrainingLog.update

    def stop_after_three(self: TrainingLog, **row: Any) -> None:
        written(self, **row)
        if row["step"] == 3:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLog, "update", stop_after_three)
        assert main(queue) != 0
    assert not (tmp_path / "r").exists()
    capsys.readouterr()
    assert main(queue) == 0
    resumed = re.search(r"resuming after update (\d+)", capsys.readouterr().out)
    assert resumed
    assert 3 <= int(resumed[1]) < 6  # a row may be written some updates after it was computed
    metrics = tmp_path / "o" / "tiny" / "runs" / "small" / "detr_r50-1ep-seed1" / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert len(list((tmp_path / "r").iterdir())) == 2


def test_data_are_drawn_once_and_by_one_description(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(RecipeRow, "config", lambda self, *_: tiny_config(epochs=1, num_classes=91))
    drawn = {"train": 2, "val": 1, "image_size": [64, 80]}
    content = {
        "data": {"drawn": drawn},
        "runs": [{"row": "detr_r50", "data": "drawn", "epochs": 1, "seeds": [1]}],
    }
    file = tmp_path / "queue.yaml"
    command = ["queue", str(file), "--output", str(tmp_path / "o"), "--device", "cpu"]
    command += ["--results", str(tmp_path / "r")]
    file.write_text(yaml.safe_dump(content))
    assert main(command) == 0
    assert len(list((tmp_path / "o" / "data" / "drawn" / "train").iterdir())) == 2
    content["runs"][0]["seeds"], drawn["train"] = [2], 3  # type: ignore[index]
    file.write_text(yaml.safe_dump(content))
    assert main(command) == 2
    assert "was drawn by another description" in capsys.readouterr().err
    # Without the note of how it was drawn, the run's own tells.
    content["data"] = {"drawn": str(make_other_data(tmp_path / "other"))}
    content["runs"][0]["seeds"] = [1]  # type: ignore[index]
    file.write_text(yaml.safe_dump(content))
    (tmp_path / "r" / "drawn-detr_r50-1ep-seed1.json").unlink()
    assert main(command) == 2
    assert "is a run on other data (6 classes, 1 pictures" in capsys.readouterr().err


def make_other_data(folder: Path) -> Path:
    return generate(folder, train=2, val=2, image_size=(64, 80))


def test_a_run_that_diverges_does_not_stop_the_others(
    queue: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def config(self: RecipeRow, scale: str, epochs: int | None, seed: int) -> RunConfig:
        return tiny_config(epochs=1, lr=1e30 if seed == 1 else 1e-4, seed=seed)

    monkeypatch.setattr(RecipeRow, "config", config)
    assert main(queue) == 2
    assert "failed: tiny-detr_r50-1ep-seed1" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["tiny-detr_r50-1ep-seed2.json"]


def test_jobs_share_a_queue_and_a_failing_one_is_reported(
    queue: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path(queue[1])
    content = yaml.safe_load(file.read_text())
    content["data"]["gone"] = str(tmp_path / "nowhere")
    content["runs"].append({"row": "detr_r50", "data": "gone", "epochs": 1, "seeds": [3]})
    file.write_text(yaml.safe_dump(content))
    (tmp_path / "r").mkdir()
    for seed in (1, 2):
        (tmp_path / "r" / f"tiny-detr_r50-1ep-seed{seed}.json").write_text("{}")
    assert main([*queue, "--jobs", "2"]) == 2
    printed = capsys.readouterr()
    assert "jobs/2.log" in printed.out
    assert "a job of the queue has failed" in printed.err
    logs = [(tmp_path / "o" / "jobs" / f"{job}.log").read_text() for job in (1, 2)]
    assert [log.count("finished") for log in logs] == [2, 2]  # both jobs have the whole list,
    assert "nowhere" in "".join(logs)  # and the last run fell to one of them
    assert main([*queue, "--jobs", "0"]) == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("- a", "is not a queue of runs"),
        ("{data: {}, runs: [{row: detr_r50}]}", "misses data, epochs, seeds"),
        ("{data: {}, runs: [{row: a, data: b, epochs: 1, seeds: [1]}]}", "there is no row a"),
        ("{data: {c: x}, runs: [{row: detr_r50, data: b, epochs: 1, seeds: [1]}]}", "no data set b among c"),
        ("{data: {}, runs: [{row: a, data: b, epochs: 1, seeds: [1], x: 1}]}", "has unknown fields x"),
        ("{data: {}, runs: }", "is not a queue of runs"),
        ("{data: [a], runs: []}", "is not a queue of runs"),
        ("{data: {}, runs: [text]}", "'text' is not a run"),
        ("{data: {c: x}, runs: [{row: [a], data: c, epochs: 1, seeds: [1]}]}", "there is no row"),
        ("{data: {c: x}, runs: [{row: detr_r50, data: [c], epochs: 1, seeds: [1]}]}", "no data set"),
        ("{data: {c: x}, runs: [{row: detr_r50, data: c, epochs: six, seeds: [1]}]}", "needs epochs"),
        ("{data: {c: x}, runs: [{row: detr_r50, data: c, epochs: 0, seeds: [1]}]}", "needs epochs"),
        (
            "{data: {c: x}, runs: [{row: detr_r50, data: c, epochs: 1, seeds: [1], evaluate_every: 0}]}",
            "evaluate_every of at least 1",
        ),
        ("{data: {c: x}, runs: [{row: detr_r50, data: c, epochs: 1, seeds: 1}]}", "needs a list of whole"),
        ("{data: {c: x}, runs: [{row: detr_r50, data: c, epochs: 1, seeds: [1, 1]}]}", "more than once"),
        ("{data: {c: 3}, runs: []}", "must be a folder, or numbers"),
        ("{data: {c: {trian: 3}}, runs: []}", "not trian"),
        ("{data: {c: {train: three}}, runs: []}", "the others whole numbers"),
        ("{data: {c: {image_size: 64}}, runs: []}", "`image_size` \\[height, width\\]"),
        ("\x80", "is not a queue of runs"),
    ],
)
def test_a_wrong_queue_is_refused(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "q.yaml").write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=words):
        read_queue(tmp_path / "q.yaml")


def test_every_row_of_the_first_two_tables_can_be_queued() -> None:
    assert {row.name for row in (*table1.ROWS, *table2.ROWS)} == ROWS.keys()

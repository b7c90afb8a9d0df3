"""What training writes down: rows of means, rows that a resumed run repeats, TensorBoard."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from deformable_detr.errors import UserError
from deformable_detr.run_folder.log import TrainingLog, note_start
from deformable_detr.run_folder.names import METRICS_FILE
from deformable_detr.run_folder.reading import read_metrics, read_starts


def log_in(folder: Path, last_step: int = 10, terminal: bool = False, **steps: int) -> TrainingLog:
    console = Console(file=io.StringIO(), width=100, force_terminal=terminal)
    return TrainingLog(folder, console, True, last_step=last_step, **steps)


def update(log: TrainingLog, step: int, every: int = 1, **losses: float) -> None:
    log.update(
        epoch=0,
        step=step,
        losses={"loss": float(step), **losses},
        rates={"base": 0.1},
        images=4,
        seconds=0.5,
        every=every,
    )


def read(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]


def test_rows_are_means_since_the_last_row(tmp_path: Path) -> None:
    with log_in(tmp_path, last_step=5) as log:
        for step in range(1, 6):
            update(log, step, every=2)
    rows = read(tmp_path)
    assert [(row["step"], row["loss"]) for row in rows] == [(2, 1.5), (4, 3.5), (5, 5.0)]
    assert 0.05 < rows[0].pop("peak_memory_gb") < 1000
    assert rows[0] == {
        "kind": "train",
        "epoch": 0,
        "step": 2,
        "loss": 1.5,
        "learning_rate": {"base": 0.1},
        "images_per_second": 8.0,
        "seconds": 1.0,
    }
    shown = log.console.file.getvalue()  # type: ignore[attr-defined]
    assert re.search(r"update 4/5  loss 3.500  8.0 img/s  \d+\.\d GB  0 seconds left", shown)  # half a second
    assert "update 2/5" in shown
    assert "2 seconds left" in shown
    assert shown.rstrip().endswith(" GB")  # nothing is left after the last update


def test_a_value_that_some_updates_lack(tmp_path: Path) -> None:
    # fp16's scaler leaves out updates whose gradient is infinite
    with log_in(tmp_path) as log:
        update(log, 1, every=3)
        update(log, 2, every=3, gradient_norm=1.0)
        update(log, 3, every=3, gradient_norm=2.0)
    assert read(tmp_path)[0]["gradient_norm"] == 1.5


def test_a_resumed_log_repeats_nothing(tmp_path: Path) -> None:
    with log_in(tmp_path) as log:
        update(log, 1)
        update(log, 2)
        log.epoch(0, 2, {"AP": 0.1, "AP50": 0.2, "APs": 0.1, "APm": 0.1, "APl": -1.0})
        update(log, 3)
    assert isinstance(log.console.file, io.StringIO)
    assert "APm 0.100  APl n/a" in log.console.file.getvalue()
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"kind": "tra')
    with log_in(tmp_path, first_step=2, closed_step=2) as log:
        update(log, 3)
    kinds = [("train", 1), ("train", 2), ("evaluation", 2), ("train", 3)]
    assert [(row["kind"], row["step"]) for row in read(tmp_path)] == kinds
    # stopped after update 2 and before its evaluation was complete
    with log_in(tmp_path, first_step=2):
        pass
    assert [(row["kind"], row["step"]) for row in read(tmp_path)] == kinds[:2]


def test_an_epoch_without_metrics_writes_no_row(tmp_path: Path) -> None:
    with log_in(tmp_path) as log:
        log.epoch(0, 1, None)
    assert read(tmp_path) == []


def test_tensorboard_has_the_same_numbers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with log_in(tmp_path) as log:
        for step in (1, 2):
            update(log, step)
        log.epoch(0, 2, {"AP": 0.1, "AP50": 0.2, "APs": 0.1, "APm": 0.1, "APl": 0.3, "split": "val"})
    with log_in(tmp_path, first_step=1) as log:
        update(log, 2, box=0.5)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert {"train/loss", "train/box", "learning_rate/base", "evaluation/AP"} <= set(events.Tags()["scalars"])
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 1.0), (2, 2.0)]


def test_without_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with log_in(tmp_path) as log:
        update(log, 1)
        log.epoch(0, 1, {"AP": 0.1, "AP50": 0.2, "APs": 0.1, "APm": 0.1, "APl": 0.3})
    assert [row["kind"] for row in read(tmp_path)] == ["train", "evaluation"]
    assert [path.name for path in tmp_path.iterdir()] == [METRICS_FILE]
    lines = log.console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert [
        line for line in lines if "only metrics.jsonl is written" in line and "deformable-detr[train]" in line
    ]


def test_a_folder_that_tensorboard_cannot_spell(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"K\xe4fer")
    with log_in(folder) as log:
        update(log, 1)
    assert [path.name for path in folder.iterdir()] == [METRICS_FILE]
    assert "not UTF-8: only metrics.jsonl is written" in log.console.file.getvalue()  # type: ignore[attr-defined]


def test_a_metric_that_does_not_exist(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with log_in(tmp_path) as log:
        log.epoch(0, 1, {"AP": 0.1, "AP50": 0.2, "APs": -1.0, "APm": 0.0, "APl": 0.3})
    assert "APs n/a  APm 0.000" in log.console.file.getvalue()  # type: ignore[attr-defined]
    assert read(tmp_path)[0]["APs"] == -1  # as COCO has it
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert "evaluation/APs" not in events.Tags()["scalars"]
    assert "evaluation/APm" in events.Tags()["scalars"]


def test_silent_and_without_files_in_other_processes(tmp_path: Path) -> None:
    console = Console(file=io.StringIO())
    with TrainingLog(tmp_path / "run", console, False, last_step=5) as log:
        for step in range(1, 6):
            update(log, step)
        log.epoch(0, 5, {"AP": 0.1})
    assert not (tmp_path / "run").exists()
    assert console.file.getvalue().strip() == ""  # type: ignore[attr-defined]  # Rich 13 ends a line
    assert log.window == []  # nothing that grows with the run


def test_progress_line_on_a_terminal(tmp_path: Path) -> None:
    with log_in(tmp_path, terminal=True) as log:
        update(log, 1)
        with log.paused():
            pass
        update(log, 2)
    shown = log.console.file.getvalue()  # type: ignore[attr-defined]
    assert "img/s" in shown
    assert "2/10" in shown


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_rows_are_on_disk_whatever_ends_training(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        _interrupted_by(error, tmp_path)
    assert [row["step"] for row in read(tmp_path)] == [1]


def _interrupted_by(error: type[BaseException], folder: Path) -> None:
    with log_in(folder) as log:
        update(log, 1)
        raise error


def test_starts_of_a_run(tmp_path: Path) -> None:
    assert read_starts(tmp_path) == ()
    for step in (0, 20):
        note_start(tmp_path, step=step, device="cpu", processes=2, data={"classes": ["a"]})
    first, second = read_starts(tmp_path)
    assert (first["step"], second["step"], second["processes"]) == (0, 20, 2)
    assert first["data"] == {"classes": ["a"]}
    assert first["device"].startswith("cpu")
    (tmp_path / "environment.jsonl").write_text("half")
    with pytest.raises(UserError, match=r"environment\.jsonl cannot be read"):
        read_starts(tmp_path)


def test_a_log_that_was_cut_off_within_a_character_is_continued(tmp_path: Path) -> None:
    whole = b'{"kind": "train", "epoch": 0, "step": 0}\n'
    (tmp_path / METRICS_FILE).write_bytes(whole + b'{"kind": "evaluation", "class": "\xc3')
    with log_in(tmp_path):
        pass
    assert (tmp_path / METRICS_FILE).read_bytes() == whole


@pytest.mark.parametrize(
    "row", [b"\xff\xfe", b'{"kind": "train"}', b'{"kind": "train", "epoch": 0, "step": "x"}']
)
def test_a_damaged_log_is_named_by_its_line(row: bytes, tmp_path: Path) -> None:
    (tmp_path / METRICS_FILE).write_bytes(row + b"\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 1 is not a row"):
        read_metrics(tmp_path / METRICS_FILE)
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 1 is not a row"), log_in(tmp_path):
        pass

"""The comparison of a recipe's variants, from results made by hand, and their way through a queue."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from deformable_detr.config import RunConfig
from deformable_detr.errors import UserError
from experiments.paper.__main__ import main
from experiments.paper.compare import tables
from experiments.paper.finished import group, read_results
from experiments.paper.markers import BEGIN, END
from experiments.paper.queue import read_queue
from experiments.paper.rows import AP_NAMES, Variant
from tests.support.tiny import tiny_config


def write_result(
    folder: Path, row: str, ap: float, *, seed: int, epochs: int = 2, minutes: float = 10.0
) -> None:
    folder.mkdir(exist_ok=True)
    metrics = dict.fromkeys(AP_NAMES, ap)
    content = {
        "row": row,
        "settings": {},
        "data": "drawn",
        "epochs": epochs,
        "seed": seed,
        "training_hours": 0.1,
        "cpu_seconds": 60 * minutes,
        **metrics,
        "curve": [{"epoch": epochs, **metrics}],
    }
    (folder / f"drawn-{row}-{epochs}ep-seed{seed}.json").write_text(json.dumps(content))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    for seed, ap in enumerate((0.30, 0.32, 0.31), start=1):
        write_result(folder, "today", ap, seed=seed)
        write_result(folder, "today", ap + 0.04, seed=seed, epochs=4, minutes=20)
        write_result(folder, "better", ap + 0.05 + 0.001 * seed, seed=seed, minutes=19)
        write_result(folder, "noisy", ap + (0.05 if seed == 2 else -0.04), seed=seed, minutes=40)
    return folder


def test_differences_at_equal_epochs_and_at_equal_minutes(results: Path) -> None:
    lines = [line.split(" | ") for line in tables(group(read_results(results)), "today").splitlines()]
    rows = {(cells[0], cells[1]): cells for cells in lines if len(cells) == 8}
    assert rows["| today", "2"][2:] == ["10", "3", "31.0 ± 1.0", "31.0 ± 1.0", "-", "- |"]
    # 5.2 better than two epochs; 1.2 better than the four epochs that take as long
    assert rows["| better", "2"][6:] == ["+5.2 ± 0.1", "+1.2 ± 0.1 |"]
    assert rows["| noisy", "2"][6:] == ["-1.0 ± 5.2, perhaps chance", "- |"]


def test_data_without_the_baseline_have_no_differences(results: Path) -> None:
    write_result(results, "better", 0.4, seed=1)
    for path in results.glob("drawn-today-*"):
        content = json.loads(path.read_text())
        path.with_name(f"other{path.name}").write_text(json.dumps(content | {"data": "other"}))
        path.unlink()
    text = tables(group(read_results(results)), "today")
    (line,) = [line for line in text.splitlines() if line.startswith("| better")]
    assert line.split(" | ")[6:] == ["-", "- |"]


def test_a_baseline_that_was_not_run_is_refused(results: Path) -> None:
    with pytest.raises(UserError, match="yesterday"):
        tables(group(read_results(results)), "yesterday")


def test_a_variant_runs_in_a_queue_and_is_compared(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {
        "data": {"tiny": str(tiny_data)},
        "variants": {"today": {"recipe": "deformable_detr_lite", "settings": {"train.lr": 1e-3}}},
        "runs": [{"row": "today", "data": "tiny", "epochs": 3, "seeds": [7]}],
    }
    file = tmp_path / "queue.yaml"
    file.write_text(yaml.safe_dump(content))
    (queued,) = read_queue(file)[1]
    config = queued.config
    assert (config.recipe, config.train.lr, config.train.epochs, config.train.seed) == (
        "deformable_detr_lite",
        1e-3,
        3,
        7,
    )

    def tiny(self: Variant, scale: str, epochs: int | None, seed: int) -> RunConfig:
        return tiny_config(epochs=1, seed=seed)

    monkeypatch.setattr(Variant, "config", tiny)
    content["runs"][0]["epochs"] = 1  # type: ignore[index]
    file.write_text(yaml.safe_dump(content))
    command = ["queue", str(file), "--output", str(tmp_path / "o"), "--results", str(tmp_path / "r")]
    assert main([*command, "--device", "cpu"]) == 0
    (result,) = read_results(tmp_path / "r")
    assert (result.row, result.seed) == ("today", 7)
    assert result.cpu_minutes is not None
    assert result.cpu_minutes > 0
    document = tmp_path / "document.md"
    document.write_text(f"{BEGIN}\n{END}\n")
    assert main(["compare", str(tmp_path / "r"), "--into", str(document)]) == 0
    assert "| today | 1 |" in document.read_text()


@pytest.mark.parametrize(
    ("variant", "fault"),
    [
        ({"settings": {}}, "recipe"),
        ({"recipe": "no_such_recipe"}, "no_such_recipe"),
        ({"recipe": "deformable_detr_lite", "settings": {"train.lr": -1.0}}, "lr"),
        ({"recipe": "deformable_detr_lite", "options": {}}, "options"),
    ],
)
def test_a_wrong_variant_is_refused_by_name(variant: dict[str, object], fault: str, tmp_path: Path) -> None:
    file = tmp_path / "queue.yaml"
    file.write_text(yaml.safe_dump({"data": {}, "variants": {"mine": variant}, "runs": []}))
    with pytest.raises(UserError, match=f"mine.*{fault}"):
        read_queue(file)

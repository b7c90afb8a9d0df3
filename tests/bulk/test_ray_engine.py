"""The same parts from a Ray cluster, and its faults: killed workers, a killed driver, errors of workers."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deformable_detr.bulk import Engine, predict_tables
from deformable_detr.errors import UserError
from tests.bulk.conftest import PICTURES, SHARD
from tests.support.bulk import (
    assert_complete,
    copy_of,
    descendants,
    parts_of,
    start,
    wait_for_end,
    wait_for_parts,
)

ray = pytest.importorskip("ray", reason="Ray, of the extra [scale], is not installed")

pytestmark = [
    pytest.mark.slow,
    # Ray's own: names that it has deprecated and uses itself, and files that it leaves open.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
OPTIONS: dict[str, Any] = {"threshold": 0.0, "max_detections": 5, "shard_size": SHARD}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    handler = signal.getsignal(signal.SIGTERM)
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80_000_000, log_to_driver=False)
    yield
    ray.shutdown()
    signal.signal(signal.SIGTERM, handler)  # instead of Ray's


def workers_of(driver: int) -> list[int]:
    return [number for number, command in descendants(driver).items() if command.startswith("ray::MapWorker")]


@pytest.mark.parametrize("workers", [1, 2])
def test_parts_of_ray_are_those_of_one_local_worker(
    cluster: None, model: Path, photos: Path, plain: Path, tmp_path: Path, workers: int
) -> None:
    predict_tables(model, photos, tmp_path / "out", **OPTIONS, engine=Engine("ray", workers))
    assert_complete(tmp_path / "out", PICTURES)
    assert parts_of(tmp_path / "out") == parts_of(plain)
    assert ray.is_initialized(), "a cluster that was there before stays"


def test_a_run_may_change_its_engine(
    cluster: None, model: Path, photos: Path, plain: Path, tmp_path: Path
) -> None:
    output = copy_of(plain, tmp_path / "out")
    gone = next(iter(parts_of(output)))
    (output / gone).unlink()
    report = predict_tables(model, photos, output, **OPTIONS, engine=Engine("ray"))
    assert report.parts - report.kept == 1
    assert parts_of(output) == parts_of(plain)


def test_a_killed_worker_is_replaced(
    cluster: None, model: Path, photos: Path, plain: Path, tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill(done: int, total: int, failed: int) -> None:
        if done and not killed:
            killed.extend(workers_of(os.getpid()))
            for number in killed:
                os.kill(number, signal.SIGKILL)

    options = OPTIONS | {"shard_size": 1}
    predict_tables(model, photos, tmp_path / "out", **options, engine=Engine("ray", 2), progress=kill)
    assert killed
    assert_complete(tmp_path / "out", PICTURES)
    predict_tables(model, photos, tmp_path / "local", **options)
    assert parts_of(tmp_path / "out") == parts_of(tmp_path / "local")


def test_errors_of_workers_are_sentences(cluster: None, model: Path, photos: Path, tmp_path: Path) -> None:
    """The source and then the model disappear while the workers run."""
    mine, away = copy_of(photos, tmp_path / "photos"), tmp_path / "away"

    def unplug(done: int, total: int, failed: int) -> None:
        if not away.exists():
            mine.rename(away)

    options = OPTIONS | {"shard_size": 1}
    with pytest.raises(UserError, match=rf"^{mine} cannot be reached any more"):
        predict_tables(model, mine, tmp_path / "out", **options, engine=Engine("ray"), progress=unplug)
    away.rename(mine)
    moved = copy_of(model, tmp_path / "model")

    def move(done: int, total: int, failed: int) -> None:
        moved.rename(tmp_path / "moved")

    with pytest.raises(UserError, match="there is no model"):
        predict_tables(moved, mine, tmp_path / "out", **options, engine=Engine("ray"), progress=move)
    predict_tables(model, mine, tmp_path / "out", **options, engine=Engine("ray"))
    assert_complete(tmp_path / "out", PICTURES)


def test_a_killed_driver_leaves_nothing_running_and_continues(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    """The driver starts a cluster, which ends with it."""
    output = tmp_path / "out"
    with start(model, photos, output, "--shard-size", "1", "--engine", "ray") as run:
        wait_for_parts(output, 2, run)
        family = descendants(run.pid)
        assert any(command.startswith("ray::MapWorker") for command in family.values())
        run.kill()
        run.communicate()
    wait_for_end(family)
    assert not (output / "manifest.json").exists()
    with start(model, photos, output, "--shard-size", "1", "--engine", "ray", "--workers", "2") as again:
        _, error = again.communicate()
    assert again.returncode == 0, error
    assert_complete(output, PICTURES)
    predict_tables(model, photos, tmp_path / "local", **(OPTIONS | {"shard_size": 1}))
    assert parts_of(output) == parts_of(tmp_path / "local")

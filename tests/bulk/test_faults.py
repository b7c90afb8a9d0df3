"""Faults for real: processes are killed, the disk is full. Nothing is lost, and nothing appears twice.

docs/scale.md has a table of these faults; test_ray_engine.py has those of a Ray cluster.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from deformable_detr.bulk import Engine, predict_tables
from deformable_detr.errors import UserError, WorkerLostError
from tests.support.bulk import (
    assert_complete,
    descendants,
    parts_of,
    start,
    wait_for_end,
    wait_for_parts,
    write_photos,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux lists processes in /proc"),
]
MANY = 120


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("many") / "photos", MANY, 17)


@pytest.fixture(scope="module")
def undisturbed(model: Path, many: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    output = tmp_path_factory.mktemp("many") / "out"
    predict_tables(model, many, output, threshold=0.0, max_detections=5, shard_size=2)
    assert_complete(output, MANY)
    return parts_of(output)


def sentence_in(error: str) -> str:
    """Return the only line of a run's stderr besides its progress, which has one line a minute."""
    (sentence,) = [line for line in error.splitlines() if f" of {MANY} pictures" not in line]
    return sentence


def test_parts_of_two_processes_are_those_of_one(
    model: Path, many: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    predict_tables(
        model, many, tmp_path / "out", threshold=0.0, max_detections=5, shard_size=2, engine=Engine(workers=2)
    )
    assert_complete(tmp_path / "out", MANY)
    assert parts_of(tmp_path / "out") == undisturbed
    assert not multiprocessing.active_children()


def test_a_killed_worker_process_stops_the_run_which_continues(
    model: Path, many: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    victims: list[int] = []

    def kill(done: int, total: int, failed: int) -> None:
        if done >= 20 and not victims:
            victims.append(multiprocessing.active_children()[0].pid or 0)
            os.kill(victims[0], signal.SIGKILL)

    output = tmp_path / "out"
    options = {"threshold": 0.0, "max_detections": 5, "shard_size": 2, "engine": Engine(workers=2)}
    with pytest.raises(WorkerLostError, match="a worker process was killed"):
        predict_tables(model, many, output, **options, progress=kill)
    before = parts_of(output)
    assert len(before) >= 10
    assert before.items() <= undisturbed.items()
    assert not (output / "manifest.json").exists()
    predict_tables(model, many, output, **options)
    assert_complete(output, MANY)
    assert parts_of(output) == undisturbed


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["SIGKILL", "SIGINT"])
def test_a_killed_driver_leaves_nothing_running_and_continues(
    model: Path, many: Path, undisturbed: dict[str, bytes], tmp_path: Path, workers: int, how: signal.Signals
) -> None:
    output = tmp_path / "out"
    words = ("--shard-size", "2", "--workers", str(workers))
    with start(model, many, output, *words) as run:
        wait_for_parts(output, 3, run)
        children = descendants(run.pid)
        run.send_signal(how)
        _, error = run.communicate()
    wait_for_end(children)
    assert run.returncode == (-signal.SIGKILL if how == signal.SIGKILL else 130)
    if how == signal.SIGINT:
        assert "the same command continues" in sentence_in(error)
    assert not (output / "manifest.json").exists()
    assert parts_of(output).items() <= undisturbed.items()
    with start(model, many, output, *words) as again:
        _, error = again.communicate()
    assert again.returncode == 0, error
    assert_complete(output, MANY)
    assert parts_of(output) == undisturbed


def test_a_second_process_into_the_folder_is_refused(
    model: Path, many: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    with start(model, many, output, "--shard-size", "2") as first:
        wait_for_parts(output, 1, first)
        first.send_signal(signal.SIGSTOP)  # so that it is still running in any case
        with pytest.raises(UserError, match=rf"another prediction is writing to .*process {first.pid}"):
            predict_tables(model, many, output, threshold=0.0, max_detections=5, shard_size=2)
        first.send_signal(signal.SIGCONT)
        _, error = first.communicate()
    assert first.returncode == 0, error
    assert_complete(output, MANY)
    assert parts_of(output) == undisturbed


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "none", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("this user may not mount a disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_one_sentence_and_half_a_part_is_never_there(
    model: Path, many: Path, undisturbed: dict[str, bytes], small_disk: Path, workers: int
) -> None:
    output = small_disk / "out"
    words = ("--shard-size", "2", "--workers", str(workers))
    with start(model, many, output, *words) as run:
        _, error = run.communicate()
    assert run.returncode == 2
    assert "no space left on the disk" in sentence_in(error)
    assert parts_of(output).items() <= undisturbed.items()
    assert {path.name for path in output.iterdir()} == {*parts_of(output), "_run"}
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    with start(model, many, output, *words) as again:
        _, error = again.communicate()
    assert again.returncode == 0, error
    assert_complete(output, MANY)
    assert parts_of(output) == undisturbed

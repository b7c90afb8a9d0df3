"""`predict --format parquet` on one worker: rows, restarts, refusals and faults."""

from __future__ import annotations

import errno
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deformable_detr as dd
from deformable_detr.bulk import Engine, predict_tables
from deformable_detr.bulk.job import Job
from deformable_detr.bulk.local import run_processes
from deformable_detr.bulk.plan import Plan
from deformable_detr.bulk.ray_engine import check_address
from deformable_detr.cli import main
from deformable_detr.errors import UserError
from tests.bulk.conftest import BROKEN, PICTURES, SHARD
from tests.support.bulk import (
    assert_complete,
    copy_of,
    manifest_of,
    parts_of,
    rows_of,
    write_model,
    write_photos,
)

OPTIONS: dict[str, Any] = {"threshold": 0.0, "max_detections": 5, "shard_size": SHARD}


def test_rows_are_the_predictions_of_the_detector(model: Path, photos: Path, plain: Path) -> None:
    assert_complete(plain, PICTURES)
    detector = dd.load(model, "cpu")
    rows = rows_of(plain)
    assert [row["path"] for row in rows] == [str(path) for path in sorted(photos.rglob("*.png"))]
    for row in rows:
        if row["path"].endswith(f"{BROKEN:04}.png"):
            assert "not an image" in row["error"]
            assert [row[name] for name in ("width", "height", "boxes", "scores", "labels")] == [None] * 5
            continue
        wanted = detector.predict(row["path"], 0.0, max_detections=5)
        assert (row["height"], row["width"]) == wanted.image_size
        assert row["error"] is None
        np.testing.assert_allclose(row["boxes"], wanted.boxes_xyxy, atol=1e-3)
        np.testing.assert_allclose(row["scores"], wanted.scores, atol=1e-5)
        assert row["labels"] == wanted.labels.tolist()
        assert row["category_ids"] == wanted.category_ids.tolist()
    counts = manifest_of(plain)["counts"]
    assert counts == {"pictures": PICTURES, "detections": 5 * (PICTURES - 1), "errors": 1}


def test_a_stopped_run_continues_with_the_missing_parts(
    model: Path, photos: Path, plain: Path, tmp_path: Path
) -> None:
    def stop(done: int, total: int, failed: int) -> None:
        if done >= 2 * SHARD:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_tables(model, photos, tmp_path / "out", **OPTIONS, progress=stop)
    first = parts_of(tmp_path / "out")
    assert len(first) == 2
    assert not (tmp_path / "out" / "manifest.json").exists()
    times = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in first}

    report = predict_tables(model, photos, tmp_path / "out", **OPTIONS)
    assert (report.parts, report.kept) == (6, 2)
    assert_complete(tmp_path / "out", PICTURES)
    assert parts_of(tmp_path / "out") == parts_of(plain)
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in first} == times
    again = predict_tables(model, photos, tmp_path / "out", **OPTIONS)
    assert again.kept == again.parts == 6


def test_missing_and_damaged_parts_are_written_again(
    model: Path, photos: Path, plain: Path, tmp_path: Path
) -> None:
    output = copy_of(plain, tmp_path / "out")
    whole = parts_of(output)
    (gone, cut, empty, *_) = whole
    (output / gone).unlink()
    (output / cut).write_bytes(whole[cut][:-5])
    (output / empty).write_bytes(b"")
    report = predict_tables(model, photos, output, **OPTIONS)
    assert report.parts - report.kept == 3
    assert parts_of(output) == whole


def test_a_source_that_grows_does_not_move_pictures_between_parts(
    model: Path, photos: Path, plain: Path, tmp_path: Path
) -> None:
    mine = copy_of(photos, tmp_path / "photos")

    def grow(done: int, total: int, failed: int) -> None:
        if done:
            (mine / "a" / "0000.png").write_bytes((mine / "a" / "0001.png").read_bytes())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_tables(model, mine, tmp_path / "out", **OPTIONS, progress=grow)
    predict_tables(model, mine, tmp_path / "out", **OPTIONS)
    assert_complete(tmp_path / "out", PICTURES)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"threshold": 0.25}, r"options\.threshold \(0\.0, now 0\.25\)"),
        ({"batch_size": 3}, r"options\.batch_size"),
        ({"threads": 2}, r"options\.threads"),
        ({"classes": ["cat"]}, r"options\.classes"),
        ({"shard_size": 5}, r"shard_size"),
        ({"sources": "a"}, r"sources"),
        ({"model": 1}, r"model"),
    ],
)
def test_another_model_or_option_is_never_mixed_in(
    model: Path, photos: Path, plain: Path, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    output = copy_of(plain, tmp_path / "out")
    before = parts_of(output)
    other = write_model(tmp_path / "model", change.pop("model")) if "model" in change else model
    source = photos / change.pop("sources") if "sources" in change else photos
    with pytest.raises(UserError, match=rf"begun with another {named}.*another --output"):
        predict_tables(other, source, output, **(OPTIONS | change))
    assert parts_of(output) == before


def test_parts_from_elsewhere_are_not_adopted(model: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "part-0.parquet").write_bytes(b"")
    with pytest.raises(UserError, match=r"contains parts but no _run/run\.json"):
        predict_tables(model, photos, tmp_path, **OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["part-0.parquet"]


HOLD = """
import fcntl, os, sys
lock = os.open(sys.argv[1], os.O_CREAT | os.O_RDWR)
fcntl.lockf(lock, fcntl.LOCK_EX)
os.write(lock, b"%d" % os.getpid())
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_second_run_into_the_folder_is_refused_and_a_dead_one_does_not_block(
    model: Path, photos: Path, plain: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, output / "predict.lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(UserError, match=rf"another prediction is writing to .*process {other.pid}"):
            predict_tables(model, photos, output, **OPTIONS)
        assert [path.name for path in output.iterdir()] == ["predict.lock"]
        other.kill()
        other.wait()
    assert (output / "predict.lock").exists(), "as a killed run leaves it"
    predict_tables(model, photos, output, **OPTIONS)
    assert parts_of(output) == parts_of(plain)


def test_a_full_disk_is_one_sentence_and_the_run_continues(
    model: Path,
    photos: Path,
    plain: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Space for two parts; the disk that is really full is in test_faults.py."""
    write_bytes = Path.write_bytes
    written: list[Path] = []

    def limited(path: Path, content: bytes) -> int:
        if len(written) == 2:
            write_bytes(path, content[:50])
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        return write_bytes(path, content)

    output = tmp_path / "out"
    words = ["predict", str(model), str(photos), "--output", str(output), "--format", "parquet"]
    words += ["--threshold", "0", "--max-detections", "5", "--shard-size", str(SHARD)]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", limited)
        assert main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no space left" in error
    assert {path.name for path in output.iterdir()} == {*parts_of(output), "_run"}
    assert len(parts_of(output)) == 2
    assert main(words) == 0
    assert parts_of(output) == parts_of(plain)


def test_a_source_that_disappears_stops_the_run_and_loses_no_picture(
    model: Path, photos: Path, plain: Path, tmp_path: Path
) -> None:
    mine = copy_of(photos, tmp_path / "photos")
    away = tmp_path / "away"

    def unplug(done: int, total: int, failed: int) -> None:
        if done == 2 * SHARD:
            mine.rename(away)

    output = tmp_path / "out"
    with pytest.raises(UserError, match=rf"{mine} cannot be reached any more .*repeat the command"):
        predict_tables(model, mine, output, **OPTIONS, progress=unplug)
    kept = parts_of(output)
    mine.mkdir()  # an unmounted disk leaves an empty folder
    with pytest.raises(UserError, match="cannot be reached any more"):
        predict_tables(model, mine, output, **OPTIONS)
    assert parts_of(output) == kept
    mine.rmdir()
    away.rename(mine)
    predict_tables(model, mine, output, **OPTIONS)
    assert_complete(output, PICTURES)
    assert [row["scores"] for row in rows_of(output)] == [row["scores"] for row in rows_of(plain)]


def test_a_single_missing_picture_is_a_row(model: Path, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 3)

    def remove(done: int, total: int, failed: int) -> None:
        (photos / "b" / "0002.png").unlink(missing_ok=True)

    predict_tables(model, photos, tmp_path / "out", shard_size=1, progress=remove)
    assert_complete(tmp_path / "out", 3)
    assert [row["error"] is None for row in rows_of(tmp_path / "out")] == [True, True, False]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--engine", "ray"], "--engine is for tables: add --format parquet"),
        (["--workers", "2"], "--workers is for tables"),
        (["--format", "parquet", "--ray-address", "auto"], "--ray-address is for Ray: add --engine ray"),
        (["--format", "parquet", "--gpus-per-worker", "1"], "--gpus-per-worker is for Ray"),
        (["--format", "parquet", "--no-track"], "--no-track and --every are for videos"),
        (["--format", "parquet", "--workers", "0"], "workers must be at least 1, not 0"),
        (["--format", "parquet", "--shard-size", "0"], "shard_size must be at least 1"),
        (["--format", "parquet", "--tta-scales", "[0]"], "tta_scales must be"),
        (["--format", "parquet", "--engine", "ray", "--device", "cuda"], "does not fit --gpus-per-worker 0"),
        (["clip.mp4", "--format", "parquet"], "clip.mp4 is a video"),
        (["nowhere", "--format", "parquet"], "nowhere: there is no such file or folder"),
        (["memory://x", "--format", "parquet", "--workers", "2"], "memory:// exists in one process only"),
        (["-", "--format", "parquet"], "is for JSON lines"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_the_model_is_loaded(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    code = main(["predict", "no_model", str(photos), *words, "--output", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert code == 2
    assert message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nothing_listens_is_refused_at_once(
    scheme: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as bound:  # but it does not listen
        bound.bind(("127.0.0.1", 0))
        address = f"{scheme}127.0.0.1:{bound.getsockname()[1]}"
        words = ["--format", "parquet", "--engine", "ray", "--ray-address", address]
        assert main(["predict", "no_model", str(photos), *words, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert f"no Ray cluster at {address}" in error
    assert "refused" in error
    assert "--ray-address" in error


def test_only_addresses_that_can_be_reached_are_left_to_ray() -> None:
    with pytest.raises(UserError, match=r"no Ray cluster at 127\.0\.0\.1:99999"):
        check_address("127.0.0.1:99999")
    for address in ("auto", "local", "nonsense"):
        check_address(address)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        check_address(f"127.0.0.1:{listening.getsockname()[1]}")


def test_local_workers_do_not_share_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr("deformable_detr.bulk.command.choose_device", lambda _: torch.device("cuda"))
    with pytest.raises(UserError, match="would share one GPU"):
        Engine(workers=2).device("auto")
    assert Engine("ray", 2, 0.5).device("auto") == "cuda"


def test_a_process_that_cannot_load_the_model_says_so(tmp_path: Path) -> None:
    job = Job(str(tmp_path / "moved"), "cpu")
    with pytest.raises(UserError, match="moved"):
        list(run_processes(job, Plan({}, tmp_path / "listing.parquet"), [None], workers=1))


def test_no_readable_picture_is_exit_code_2(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"nonsense")
    words = ["predict", str(model), str(tmp_path / "bad.jpg"), "--format", "parquet", "--output"]
    assert main([*words, str(tmp_path / "out")]) == 2
    assert "no picture could be read" in capsys.readouterr().err
    assert_complete(tmp_path / "out", 1)

"""Pictures on an S3 server, with connections that break and a server that disappears."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from deformable_detr.bulk import predict_tables
from deformable_detr.errors import UserError
from tests.bulk.conftest import PICTURES, SHARD
from tests.support.bulk import assert_complete, parts_of, rows_of
from tests.support.s3 import BUCKET, Proxy, served

pytest.importorskip("s3fs", reason="s3fs is not installed")
pytest.importorskip("moto", reason="moto is not installed")

pytestmark = [
    pytest.mark.slow,
    # Connections that broke are found unclosed later; botocore and werkzeug use what Python has deprecated.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
OPTIONS: dict[str, Any] = {"threshold": 0.0, "max_detections": 5, "shard_size": SHARD}
URL = f"s3://{BUCKET}"


@pytest.fixture
def proxy(photos: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with served(photos, monkeypatch) as server:
        yield server
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def assert_rows_of(output: Path, plain: Path) -> None:
    assert_complete(output, PICTURES)
    for row, wanted in zip(rows_of(output), rows_of(plain), strict=True):
        assert Path(row["path"]).name == Path(wanted["path"]).name
        assert (row["boxes"], row["scores"]) == (wanted["boxes"], wanted["scores"])
        assert (row["error"] is None) == (wanted["error"] is None)


def test_rows_are_those_of_files_although_connections_break(
    proxy: Proxy, model: Path, plain: Path, tmp_path: Path
) -> None:
    proxy.every = 4
    predict_tables(model, URL, tmp_path / "out", **OPTIONS)
    assert proxy.broken >= PICTURES // 4
    assert_rows_of(tmp_path / "out", plain)


def test_a_server_that_disappears_stops_the_run_which_continues(
    proxy: Proxy, model: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deformable_detr.data.remote.FIRST_WAIT_S", 0.0)

    def unplug(done: int, total: int, failed: int) -> None:
        proxy.down = done > 0

    output = tmp_path / "out"
    with pytest.raises(UserError, match=rf"{URL} cannot be reached any more"):
        predict_tables(model, URL, output, **OPTIONS, progress=unplug)
    kept = parts_of(output)
    assert len(kept) == 1
    assert rows_of(output)[0]["error"] is None
    proxy.down = False
    predict_tables(model, URL, output, **OPTIONS)
    assert kept.items() <= parts_of(output).items()
    assert_rows_of(output, plain)


def test_a_picture_that_was_deleted_is_a_row(proxy: Proxy, model: Path, tmp_path: Path) -> None:
    files, path = fsspec.core.url_to_fs(URL, use_listings_cache=False)

    def delete(done: int, total: int, failed: int) -> None:
        if not done:
            files.rm(f"{path}/b/0000.png")

    predict_tables(model, URL, tmp_path / "out", **OPTIONS, progress=delete)
    assert_complete(tmp_path / "out", PICTURES)
    errors = {Path(row["path"]).name: row["error"] for row in rows_of(tmp_path / "out") if row["error"]}
    assert "there is no file s3://photos/b/0000.png" in errors["0000.png"]

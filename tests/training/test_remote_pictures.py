"""Training and evaluation on pictures behind a URL, with reads that fail and a cache that is too small."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import pytest

from deformable_detr.cli.main import main
from deformable_detr.data import remote
from deformable_detr.data.formats import read_split
from deformable_detr.evaluation import evaluate
from deformable_detr.training import train
from tests.support.file_server import FileServer
from tests.support.s3 import BUCKET, served
from tests.support.tiny import assert_same_run, changed_data, tiny_config

pytestmark = pytest.mark.usefixtures("one_thread")


def test_remote_pictures_train_as_local_ones(
    whole_run: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.0)
    pictures = {
        f"pictures/{split}/{record.file_name}": record.path.read_bytes()
        for split in ("train", "val")
        for record in read_split(tiny_data, split).images
    }
    annotations = changed_data(tiny_data, tmp_path / "data", lambda content: None)
    for record in (*read_split(tiny_data, "train").images, *read_split(tiny_data, "val").images):
        (annotations / record.path.relative_to(tiny_data)).unlink()
    cache, limit = tmp_path / "cache", sum(map(len, pictures.values())) // 2
    with FileServer(pictures, failures=1) as server:
        options = {
            "data.images": f"{server.url}/pictures/{{split}}",
            "data.cache_gb": limit / 1e9,
            "data.cache_folder": str(cache),
        }
        run = tmp_path / "run"
        train(annotations, tiny_config(num_workers=2), run, **options)
        assert_same_run(run, whole_run)
        assert 0 < sum(path.stat().st_size for path in cache.glob("??/*")) <= limit
        assert server.url not in (run / "checkpoints" / "last" / "config.json").read_text()

        found = tmp_path / "metrics.json"
        words = ["evaluate", str(run), str(annotations), "--output", str(found)]
        words += [word for name, value in options.items() for word in (f"--{name}", str(value))]
        assert main(words) == 0
        local = evaluate(whole_run, tiny_data, progress=False)
        assert {**json.loads(found.read_text()), "seconds": 0} == {**local, "seconds": 0}


@pytest.mark.slow
# Connections that broke are found unclosed later; botocore and werkzeug use what Python has deprecated.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_pictures_on_s3_train_as_local_ones_although_connections_break(
    whole_run: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    pytest.importorskip("moto", reason="moto is not installed")
    records = [*read_split(tiny_data, "train").images, *read_split(tiny_data, "val").images]
    annotations = changed_data(tiny_data, tmp_path / "data", lambda content: None)
    for record in records:
        (annotations / record.path.relative_to(tiny_data)).unlink()
    [folder] = {record.path.parents[1] for record in records}
    with served(folder, monkeypatch) as proxy:
        proxy.every = 4
        options = {
            "data.images": f"s3://{BUCKET}/{{split}}",
            "data.cache_gb": 0.0,
            "data.cache_folder": str(tmp_path / "cache"),
        }
        train(annotations, tiny_config(num_workers=2), tmp_path / "run", **options)
        assert proxy.broken
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    assert_same_run(tmp_path / "run", whole_run)

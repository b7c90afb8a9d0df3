"""Pictures behind URLs: names, the bounded cache, and COCO data sets whose pictures are elsewhere."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch

from deformable_detr.data import remote
from deformable_detr.data.formats import read_split
from deformable_detr.data.images import open_image, read_header
from deformable_detr.data.loading import training_loader
from deformable_detr.data.remote_folder import PictureCache, RemoteFile, RemoteFolder, remote_folder
from deformable_detr.errors import UserError
from tests.support.file_server import FileServer
from tests.support.tiny import changed_data, tiny_config


def folder_of(url: str, cache: Path, cache_gb: float = 1.0) -> RemoteFolder:
    folder = remote_folder(url, cache_gb, str(cache))
    assert folder is not None
    return folder


def kept_bytes(cache: Path) -> int:
    return sum(path.stat().st_size for path in cache.glob("??/*") if path.is_file())


def pictures_of(data: Path) -> dict[str, bytes]:
    """The pictures by the split and the name in its annotations."""
    return {
        f"{split}/{record.file_name}": record.path.read_bytes()
        for split in ("train", "val")
        for record in read_split(data, split).images
    }


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.0)


@pytest.fixture
def annotations_only(tiny_data: Path, tmp_path: Path) -> Path:
    """The tiny data set without its pictures."""
    root = changed_data(tiny_data, tmp_path / "annotations_only", lambda content: None)
    for path in [*root.rglob("*.jpg"), *root.rglob("*.png")]:
        path.unlink()
    return root


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("a.jpg", "s3://bucket/train/a.jpg"),
        ("b/a.jpg", "s3://bucket/train/b/a.jpg"),
        (r"b\a.jpg", "s3://bucket/train/b/a.jpg"),
        ("./b/../a 1#.jpg", "s3://bucket/train/a 1#.jpg"),
        ("..a.jpg", "s3://bucket/train/..a.jpg"),
        ("../a.jpg", None),
        ("..", None),
        ("b/../../a.jpg", None),
        ("/a.jpg", None),
        (".", None),
        ("a\0.jpg", None),
    ],
)
def test_names_stay_inside_the_folder(tmp_path: Path, name: str, url: str | None) -> None:
    file = folder_of("s3://bucket/train/", tmp_path).file(name)
    assert (None if file is None else str(file)) == url


def test_names_are_quoted_for_http(tmp_path: Path) -> None:
    content = b"content"
    with FileServer({"a%201%23%25.jpg": content}) as server:
        file = folder_of(server.url, tmp_path).file("a 1#%.jpg")
        assert file is not None
        assert file.read() == content


def test_a_path_is_not_a_url(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.images.*not /data/train"):
        remote_folder("/data/train", 1.0, str(tmp_path))


def test_a_file_is_read_once(tmp_path: Path) -> None:
    with FileServer({"a": b"content"}) as server:
        file = folder_of(server.url, tmp_path).file("a")
        assert file is not None
        assert [file.read(), file.read()] == [b"content"] * 2
        assert server.requests == ["/a"]


def test_a_file_of_the_cache_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with FileServer({"a": b"content"}) as server:
        file = folder_of(server.url, tmp_path).file("a")
        assert file is not None
        file.read()
        (kept,) = (path for path in tmp_path.rglob("*") if path.is_file() and path.read_bytes() == b"content")
        kept.unlink()
        kept.mkdir()
        with pytest.raises(UserError, match=f"{kept.name}, a file of the picture cache.*--data.cache_folder"):
            file.read()


def test_the_cache_is_bounded_and_keeps_what_it_has(tmp_path: Path) -> None:
    with FileServer({str(number): bytes(1000) for number in range(20)}) as server:
        cache = PictureCache(tmp_path, 5500, server.url)
        for _ in range(3):
            for number in range(20):
                assert cache.read(f"{server.url}/{number}") == bytes(1000)
                assert kept_bytes(tmp_path) <= 5500
        assert kept_bytes(tmp_path) == 5000
        assert len(server.requests) == 20 + 15 + 15


def test_another_source_takes_the_room(tmp_path: Path) -> None:
    with FileServer({str(number): bytes(1000) for number in range(8)}) as server:
        for source, files in (("first", range(5)), ("second", range(4, 8))):
            cache = PictureCache(tmp_path, 5500, source)
            for number in files:
                cache.read(f"{server.url}/{number}")
        assert kept_bytes(tmp_path) == 5000
        before = len(server.requests)
        for number in range(4, 8):
            cache.read(f"{server.url}/{number}")
        assert len(server.requests) == before


def test_another_source_keeps_its_files_if_they_do_not_make_enough_room(tmp_path: Path) -> None:
    with FileServer({"a": bytes(1000), "b": bytes(3000), "c": bytes(3000)}) as server:
        PictureCache(tmp_path, 5500, "first").read(f"{server.url}/a")
        second = PictureCache(tmp_path, 5500, "second")
        for name in "bc":
            assert len(second.read(f"{server.url}/{name}")) == 3000
    assert kept_bytes(tmp_path) == 4000


def test_nothing_is_kept_without_room(tmp_path: Path) -> None:
    with FileServer({"a": b"content"}) as server:
        for limit in (0, 3):
            assert PictureCache(tmp_path, limit, "x").read(f"{server.url}/a") == b"content"
    assert list(tmp_path.iterdir()) == []


def read_all(cache: PictureCache, url: str) -> None:
    for number in range(20):
        assert cache.read(f"{url}/{number}") == bytes([number]) * 1000


def test_several_processes_share_the_limit(tmp_path: Path) -> None:
    with FileServer({str(number): bytes([number]) * 1000 for number in range(20)}) as server:
        processes = [
            multiprocessing.get_context("spawn").Process(
                target=read_all, args=(PictureCache(tmp_path, 7500, server.url), server.url)
            )
            for _ in range(2)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
        assert [process.exitcode for process in processes] == [0, 0]
    assert kept_bytes(tmp_path) == 7000


def test_a_damaged_index_is_named(tmp_path: Path) -> None:
    (tmp_path / "index.sqlite").write_bytes(b"nonsense" * 1000)
    with (
        FileServer({"a": b"content"}) as server,
        pytest.raises(UserError, match=r"index\.sqlite.*cache_folder"),
    ):
        PictureCache(tmp_path, 1000, server.url).read(f"{server.url}/a")


def test_a_picture_is_opened_and_a_broken_one_named(tiny_data: Path, tmp_path: Path) -> None:
    path = next(iter([*tiny_data.rglob("*.jpg"), *tiny_data.rglob("*.png")]))
    with FileServer({"a": path.read_bytes(), "broken": path.read_bytes()[:200], "text": b"hello"}) as server:

        def file(name: str) -> RemoteFile:
            return RemoteFile(f"{server.url}/{name}", PictureCache(tmp_path, 10**6, server.url))

        opened = open_image(file("a"), max_pixels=10**6).picture
        assert np.array_equal(np.asarray(opened), np.asarray(open_image(path, max_pixels=10**6).picture))
        assert read_header(file("a")) == read_header(path)
        for name in ("broken", "text"):
            with pytest.raises(UserError, match=rf"{server.url}/{name}.* image"):
                open_image(file(name), max_pixels=10**6)


def test_a_split_with_remote_pictures_is_that_with_local_ones(
    tiny_data: Path, annotations_only: Path, tmp_path: Path
) -> None:
    local = read_split(tiny_data, "train")
    far = read_split(annotations_only, "train", images=folder_of("s3://bucket/{split}", tmp_path))
    assert [record.file_name for record in far.images] == [record.file_name for record in local.images]
    assert [str(record.file) for record in far.images] == [
        f"s3://bucket/train/{record.file_name}" for record in local.images
    ]
    for mine, theirs in zip(far.images, local.images, strict=True):
        assert mine.size == theirs.size
        assert np.array_equal(mine.boxes_xyxy, theirs.boxes_xyxy)


def test_names_that_lead_out_are_reported(tiny_data: Path, tmp_path: Path) -> None:
    def change(content: dict[str, list[dict[str, object]]]) -> None:
        content["images"][0]["file_name"] = "../../secret.jpg"

    data = changed_data(tiny_data, tmp_path / "data", change)
    split = read_split(data, "train", images=folder_of("s3://bucket", tmp_path))
    assert [problem.kind for problem in split.problems] == ["outside-root"]
    assert "secret" in split.problems[0].message


def test_other_layouts_are_refused(tmp_path: Path) -> None:
    (tmp_path / "images" / "train").mkdir(parents=True)
    (tmp_path / "data.yaml").write_text("train: images/train\nnames: [cat]\n")
    with pytest.raises(UserError, match=r"s3://bucket.*COCO"):
        read_split(tmp_path, "train", images=folder_of("s3://bucket", tmp_path))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_samples_equal_those_of_local_pictures_while_reads_fail(
    tiny_data: Path, annotations_only: Path, tmp_path: Path, num_workers: int
) -> None:
    config = tiny_config(num_workers=num_workers).data
    local = read_split(tiny_data, "train")
    with FileServer(pictures_of(tiny_data), failures=2) as server:
        far = read_split(
            annotations_only, "train", images=folder_of(f"{server.url}/{{split}}", tmp_path / "cache")
        )
        loaders = [
            training_loader(split, config, batch_size=2, accumulate=1, seed=1, epoch=0)
            for split in (far, local)
        ]
        for (mine, _), (theirs, _) in zip(*loaders, strict=True):
            assert torch.equal(mine.pixels, theirs.pixels)
        assert len(server.requests) == 3 * len(local)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_read_that_keeps_failing_ends_the_loading_with_the_name(
    annotations_only: Path, tiny_data: Path, tmp_path: Path, num_workers: int
) -> None:
    config = tiny_config(num_workers=num_workers).data
    with FileServer(pictures_of(tiny_data), failures=1000) as server:
        far = read_split(
            annotations_only, "train", images=folder_of(f"{server.url}/{{split}}", tmp_path / "cache")
        )
        loader = training_loader(far, config, batch_size=2, accumulate=1, seed=1, epoch=0)
        with pytest.raises(UserError, match=rf"{server.url}/.* 5 attempts.*503"):
            list(loader)

"""Reading of files behind URLs, from memory and from a server whose connections fail."""

from __future__ import annotations

import fsspec
import pytest
from fsspec.registry import known_implementations

from deformable_detr.data import remote
from deformable_detr.data.remote import is_url, open_file_system, read_bytes
from deformable_detr.errors import UserError
from tests.support.file_server import FileServer


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.0)


@pytest.mark.parametrize("text", ["s3://bucket/a.jpg", "memory://a", "https://host/a.jpg", "file:///a"])
def test_urls_are_recognised(text: str) -> None:
    assert is_url(text)


@pytest.mark.parametrize(
    "text", ["a.jpg", "/data/a.jpg", r"C:\data\a.jpg", "C:/data/a.jpg", "./s3:/a", "a b://c"]
)
def test_paths_are_not_urls(text: str) -> None:
    assert not is_url(text)


def test_a_file_is_read_from_memory() -> None:
    fsspec.filesystem("memory").pipe_file("/pictures/a.jpg", b"content")
    assert read_bytes("memory://pictures/a.jpg") == b"content"


def test_a_failing_server_is_asked_again() -> None:
    with FileServer({"a.jpg": b"content"}, failures=2) as server:
        assert read_bytes(f"{server.url}/a.jpg") == b"content"
        assert server.requests == ["/a.jpg"] * 3


def test_a_connection_that_breaks_inside_a_file_is_an_error_and_not_a_short_file() -> None:
    with FileServer({"a.jpg": b"content" * 1000}, failures=2, cut_short=True) as server:
        assert read_bytes(f"{server.url}/a.jpg") == b"content" * 1000
        assert len(server.requests) == 3


def test_the_attempts_are_limited_and_the_error_names_the_file() -> None:
    with FileServer({"a.jpg": b"content"}, failures=100) as server:
        with pytest.raises(UserError) as error:
            read_bytes(f"{server.url}/a.jpg", attempts=3)
        assert len(server.requests) == 3
    assert f"{server.url}/a.jpg" in str(error.value)
    assert "503" in str(error.value)


def test_a_missing_file_is_not_asked_for_again() -> None:
    with FileServer({}) as server:
        with pytest.raises(UserError, match=r"there is no file http://.*/a\.jpg"):
            read_bytes(f"{server.url}/a.jpg")
        assert server.requests == ["/a.jpg"]


def test_a_folder_is_reported(tmp_path: object) -> None:
    with pytest.raises(UserError, match="IsADirectory"):
        read_bytes(f"file://{tmp_path}")


def test_an_unknown_protocol_is_reported() -> None:
    with pytest.raises(UserError, match=r"nowhere://a.*nowhere"):
        open_file_system("nowhere://a")


def test_a_protocol_without_its_library_names_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    far = {"class": "no_such_library.FileSystem", "err": "Install no_such_library"}
    monkeypatch.setitem(known_implementations, "far", far)
    with pytest.raises(UserError, match=r"far://a.*Install no_such_library"):
        open_file_system("far://a")

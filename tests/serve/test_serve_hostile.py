"""Requests and connections that are made to block the server, or to use it through another site's page."""

from __future__ import annotations

import base64
import contextlib
import select
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from deformable_detr.errors import UserError
from deformable_detr.serve import ServeSettings, bodies, create_app
from deformable_detr.serve import server as server_module
from deformable_detr.serve.connection import Connection
from deformable_detr.serve.server import ServerProcess
from tests.support.serving import (
    form,
    in_a_thread,
    kind_of,
    picture,
    png,
    running,
    tiny_detector,
    wait_until,
)

pytestmark = pytest.mark.anyio
PNG = png(picture())
DETECT = "/v1/detect"
JSON = {"content-type": "application/json"}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize(
    "body",
    [
        b'{"images": [' + b'"",' * 100_000 + b'""]}',
        b'{"images": [' + b"0," * 100_000 + b"0]}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
)
async def test_json_is_counted_before_it_is_parsed(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight million empty strings took 30 s, in which others waited."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the body was parsed")

    monkeypatch.setattr(bodies.Base64Pictures, "model_validate_json", refuse)
    async with running(tiny_detector()) as (_, client):
        answer = await client.post(DETECT, content=body, headers=JSON)
    assert (answer.status_code, kind_of(answer)) == (413, "too_many_pictures")
    assert "16 pictures" in answer.json()["error"]["message"]


@pytest.mark.parametrize("charset", ["unicode_escape", "undefined", "bogus", "utf-16"])
async def test_names_of_files_are_utf_8(charset: str) -> None:
    head = rb'Content-Disposition: form-data; name="images"; filename="\ud800.png"'
    body = b"--x\r\n" + head + b"\r\n\r\n" + PNG + b"\r\n--x--\r\n"
    headers = {"content-type": f"multipart/form-data; boundary=x; charset={charset}"}
    async with running(tiny_detector()) as (_, client):
        answer = await client.post(DETECT, content=body, headers=headers)
    assert answer.status_code == 200
    assert answer.json()["results"][0]["file_name"] == r"\ud800.png"


async def test_a_compressed_body_is_called_so() -> None:
    async with running(tiny_detector()) as (_, client):
        answer = await client.post(DETECT, content=b"\x1f\x8b", headers={**JSON, "content-encoding": "gzip"})
    assert answer.status_code == 415
    assert "compressed" in answer.json()["error"]["message"]


async def test_a_length_of_thousands_of_digits() -> None:
    headers = {**JSON, "inference-header-content-length": "9" * 5000}
    async with running(tiny_detector()) as (_, client):
        answer = await client.post("/v2/models/model/infer", content=b"{}", headers=headers)
    assert answer.status_code == 400


@pytest.mark.parametrize("host", ["a" * 70, "\udce4"])
def test_what_cannot_be_a_host(host: str) -> None:
    with pytest.raises(UserError, match="there is no address"):
        server_module.serve(tiny_detector(), host=host)


async def test_sixteen_pictures_in_json_are_below_that_limit() -> None:
    text = base64.encodebytes(PNG).decode()  # with line breaks
    async with running(tiny_detector()) as (_, client):
        answer = await client.post(DETECT, json={"images": [f"data:image/png;base64,{text}"] * 16})
        foreign = await client.post(DETECT, json={"images": ["größer"]})
    assert answer.status_code == 200
    assert len(answer.json()["results"]) == 16
    assert (foreign.status_code, kind_of(foreign)) == (422, "invalid")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (f"{DETECT}?treshold=0.99", "'treshold': /v1/detect takes threshold, max_detections, classes"),
        ("/v1/explain?classes=car", "'classes': /v1/explain takes threshold, max_detections."),
        ("/v1/model?x=1", "'x': /v1/model takes no parameters"),
    ],
)
async def test_unknown_parameters_are_refused(path: str, words: str) -> None:
    async with running(tiny_detector()) as (_, client):
        if path.startswith("/v1/model"):
            answer = await client.get(path)
        else:
            answer = await client.post(path, files=form(PNG))
    assert (answer.status_code, kind_of(answer)) == (422, "invalid")
    assert words in answer.json()["error"]["message"]


async def test_a_wrong_method_is_told_the_right_one() -> None:
    async with running(tiny_detector()) as (_, client):
        answer = await client.get(DETECT)
        other = await client.delete("/v1/model")
    assert (answer.status_code, kind_of(answer), answer.headers["allow"]) == (
        405,
        "method_not_allowed",
        "POST",
    )
    assert "takes POST, not GET" in answer.json()["error"]["message"]
    assert "takes GET, not DELETE" in other.json()["error"]["message"]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("192.168.0.7:8000", 200),
        ("detr.example:8000", 200),
        ("evil.example", 403),
        ("evil.example:8000", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example", 403),
        ("[::1", 403),
    ],
)
async def test_foreign_names_are_refused(host: str, status: int) -> None:
    """To a browser, a page of evil.example is of the same origin once that name leads to this machine."""
    async with running(tiny_detector(), ServeSettings(allowed_hosts=("detr.example",))) as (_, client):
        for method, path in (("GET", "/v1/model"), ("GET", "/"), ("POST", DETECT)):
            files = form(PNG) if method == "POST" else None
            answer = await client.request(method, path, headers={"host": host}, files=files)
            assert answer.status_code == status, (host, path)
            if status == 403:
                assert kind_of(answer) == "forbidden"
                assert "--allowed-host" in answer.json()["error"]["message"]


async def test_any_name_can_be_allowed() -> None:
    async with running(tiny_detector(), ServeSettings(allowed_hosts=("*",))) as (_, client):
        assert (await client.get("/healthz", headers={"host": "any.example"})).status_code == 200


# ---------------------------------------------------------------------- connections


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    """Of a server that waits for headers for a fifth of a second and takes four connections."""
    monkeypatch.setattr(Connection, "headers_s", 0.2)
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS", 4)
    process = ServerProcess(create_app(tiny_detector()), "", access_log=False)
    with in_a_thread(process) as (address, _):
        url = httpx.URL(address)
        assert url.port is not None
        # Not asked over a connection, which would count, and which a busy machine may open too slowly.
        wait_until(lambda: process.app.engine.state == "ready")
        yield url.host, url.port


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n",
        # answered, but its body never ends
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n",
    ],
)
def test_who_never_finishes_a_request_is_cut_off(address: tuple[str, int], start: bytes) -> None:
    with socket.create_connection(address) as connection:
        connection.settimeout(100)
        with contextlib.suppress(ConnectionError):  # if it was closed before `start` had left
            connection.sendall(start)
            while connection.recv(65536):  # ends when the server closes it
                pass


def test_a_trickle_does_not_keep_a_connection(address: tuple[str, int]) -> None:
    with socket.create_connection(address) as connection:
        connection.settimeout(0.05)
        end = time.monotonic() + 100
        with contextlib.suppress(ConnectionError):  # reset
            connection.sendall(b"GET / HTTP/1.1\r\nX-Long: ")
            while time.monotonic() < end:
                connection.sendall(b"x")
                with contextlib.suppress(TimeoutError):
                    if not connection.recv(100):
                        return
            raise AssertionError("still open after 100 s")


def test_the_number_of_connections_is_bounded(
    address: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Connection, "headers_s", 1000.0)
    opened = [socket.create_connection(address) for _ in range(10)]

    def closed(wait_s: float) -> set[socket.socket]:
        """A connection that the server has closed has an end to read."""
        return set(select.select(opened, [], [], wait_s)[0])

    try:
        wait_until(lambda: len(closed(1)) >= 6)
        assert len(closed(0)) == 6
        for connection in set(opened) - closed(0):
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            connection.settimeout(100)
            assert connection.recv(9) == b"HTTP/1.1 "  # any answer
    finally:
        for connection in opened:
            connection.close()

"""An S3 server on this machine (moto), behind a proxy whose connections can break."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

BUCKET = "photos"
PICTURES = (".png", ".jpg")


class Proxy(ThreadingHTTPServer):
    """Forwards requests to S3.

    Attributes:
        every: n, to break the connection at every n-th request for a picture, in the middle of the answer or
            before it, in turn; 0 never breaks.
        down: True to break all connections.
        broken: the number of connections that were broken.
    """

    daemon_threads = True
    every, down, broken, requests = 0, False, 0, 0

    def __init__(self, target: str):
        self.target = urlsplit(target)
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def breaks(self, method: str, path: str) -> bool:
        with self.lock:
            if self.down:
                self.broken += 1
                return True
            if method != "GET" or not path.endswith(PICTURES):
                return False
            self.requests += 1
            breaks = bool(self.every) and self.requests % self.every == 0
            self.broken += breaks
            return breaks


class _Handler(BaseHTTPRequestHandler):
    server: Proxy

    def log_message(self, *_: Any) -> None:
        pass

    def _forward(self) -> None:
        breaks = self.server.breaks(self.command, urlsplit(self.path).path)
        self.close_connection = True
        if breaks and self.server.broken % 2:
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        connection = http.client.HTTPConnection(self.server.target.netloc)
        try:
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else len(content)
        self.send_header("Content-Length", str(length or 0))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if breaks else content)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _forward  # noqa: N815


@contextmanager
def served(photos: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Serve the pictures of a folder as `s3://photos/…`, through a proxy that works at first."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    proxy = Proxy(f"http://{host}:{port}")
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": proxy.url,
    }.items():
        monkeypatch.setenv(name, value)
    try:
        connection = http.client.HTTPConnection(host, port)
        connection.request("POST", "/moto-api/reset")  # servers of one process share their buckets
        assert connection.getresponse().status == 200
        connection.close()
        _put(f"{host}:{port}", "")
        for path in sorted(photos.rglob("*")):
            if path.suffix in PICTURES:
                _put(f"{host}:{port}", path.relative_to(photos).as_posix(), path.read_bytes())
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
        server.stop()


def _put(host: str, name: str, content: bytes = b"") -> None:
    connection = http.client.HTTPConnection(host)
    connection.request("PUT", f"/{BUCKET}/{name}".rstrip("/"), content)
    assert connection.getresponse().status == 200
    connection.close()

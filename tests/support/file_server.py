"""A server of files over HTTP whose answers can be made to fail."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType


class FileServer:
    """Serves `files` by name at `url`; the first `failures` requests for each file fail.

    A failure is status 503 or, with `cut_short`, half of the file. `requests` lists the requested paths
    in order.
    """

    def __init__(self, files: Mapping[str, bytes], *, failures: int = 0, cut_short: bool = False) -> None:
        self.requests: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                failing = outer.requests.count(self.path) < failures
                outer.requests.append(self.path)
                content = files.get(self.path.removeprefix("/"))
                if content is None or (failing and not cut_short):
                    self.send_error(404 if content is None else 503)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2] if failing else content)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FileServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

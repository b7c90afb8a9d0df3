"""The function behind `deformable-detr serve`, which runs the application on a port until a signal."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path
from types import FrameType

import uvicorn

from ..errors import UserError
from ..inference.detector import Detector
from ..inference.loading import load
from .app import Server, create_app
from .connection import Connection
from .settings import ServeSettings

TOKEN_VARIABLE = "DEFORMABLE_DETR_TOKEN"
MAX_CONNECTIONS = 1000
KEEP_ALIVE_S = 5


def serve(
    model: str | Path | Detector,
    host: str = "127.0.0.1",
    port: int = 8000,
    settings: ServeSettings | None = None,
    *,
    token_file: str | Path | None = None,
    root_path: str = "",
    access_log: bool = False,
    device: str = "auto",
    dtype: str | None = None,
) -> None:
    """Serve a model over HTTP until SIGTERM or Ctrl-C.

    After the signal, the server refuses new requests (503) and finishes the accepted ones. A second Ctrl-C
    stops it at once.

    Args:
        model: a `Detector`, or anything that `load` accepts.
        host: the address to listen on. If it is a name, requests may use this name.
        port: the TCP port; 0 chooses a free one, which the first line on stdout states.
        settings: the limits and the token; None means the defaults. If `settings.name` is the default and
            `model` is not a `Detector`, the name is that of the model's file or folder.
        token_file: a file with the token that requests must carry, if `settings` has none. None means that
            the environment variable DEFORMABLE_DETR_TOKEN contains the token; if the variable is empty or not
            set, no token is required.
        root_path: the path prefix under which a reverse proxy publishes the server. The proxy removes it from
            requests.
        access_log: whether to print a line for each request.
        device, dtype: as for `load`; ignored if `model` is a `Detector`.

    Raises:
        UserError: if the model cannot be loaded, the address does not exist here or cannot be used, the token
            file cannot be read or is empty, or the port, the token or `root_path` is invalid.
        RuntimeError: if the model is loaded but cannot compute.
    """
    settings = settings or ServeSettings()
    settings = replace(settings, allowed_hosts=(*settings.allowed_hosts, host))
    if settings.token is None:
        settings = replace(settings, token=read_token(token_file))
    if root_path and not root_path.startswith("/"):
        raise UserError(f"root_path must start with a slash, /{root_path}, not {root_path}.")
    with _bound(host, port) as bound:
        detector = model if isinstance(model, Detector) else load(model, device, dtype)
        if settings.name == ServeSettings.name and not isinstance(model, Detector):
            settings = replace(settings, name=Path(model).name or str(model))
        app = create_app(detector, settings, on_failure=lambda: process.fail())
        process = ServerProcess(app, root_path, access_log)
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{bound.getsockname()[1]}{root_path}"
        print(f"serving {settings.name} at {address} (docs: {address}/docs; Ctrl-C stops)", flush=True)
        if settings.token is None and not _is_loopback(host):
            print(
                "warning: anyone who reaches this address can use the server: give it a token "
                f"(--token-file or {TOKEN_VARIABLE}).",
                file=sys.stderr,
            )
        process.run([bound])
    if process.failed:
        raise RuntimeError("the model could not be warmed up; its error stands above")


class ServerProcess(uvicorn.Server):
    """A uvicorn server that finishes accepted requests before it stops.

    uvicorn closes its port at the first signal. This server keeps the port open until the accepted requests
    are answered, and refuses new ones (503), so that a load balancer notices that the server is stopping.
    """

    def __init__(self, app: Server, root_path: str, access_log: bool):
        super().__init__(
            uvicorn.Config(
                app,
                http=Connection,
                root_path=root_path,
                access_log=access_log,
                log_level="info" if access_log else "warning",
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                limit_concurrency=MAX_CONNECTIONS,  # more requests get 503, more connections are closed
                timeout_graceful_shutdown=int(app.settings.timeout_s) + 5,
                ws="none",
                lifespan="on",
            )
        )
        self.app = app
        self.draining = self.failed = False

    def fail(self) -> None:
        self.failed = True
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.draining and sig == signal.SIGINT:
            self.force_exit = self.should_exit = True
        self.draining = True
        self.app.engine.stop()

    async def on_tick(self, counter: int) -> bool:
        if self.draining and not self.app.requests:
            self.should_exit = True
        return await super().on_tick(counter)


def read_token(path: str | Path | None) -> str | None:
    """Return the token in the file `path`, without surrounding whitespace.

    If `path` is None, return the value of the environment variable DEFORMABLE_DETR_TOKEN, or None if the
    variable is empty or not set. No command-line option takes the token itself, because every user of a
    machine can read the command lines of its processes.

    Raises:
        UserError: if the file cannot be read or is empty.
    """
    if path is None:
        return os.environ.get(TOKEN_VARIABLE) or None
    try:
        token = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise UserError(f"the token file {path} cannot be read ({reason}): check the path.") from error
    if not token:
        raise UserError(f"the token file {path} is empty: `openssl rand -hex 32 > {path}` makes a token.")
    return token


def _bound(host: str, port: int) -> socket.socket:
    """Return a socket bound to the address, so that an address in use is reported before the model is loaded.

    Raises:
        UserError: if the address does not exist on this machine or cannot be used (for example, because
            another process uses it), or the port is out of range.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"--port must be from 0 to 65535, not {port}.")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:  # UnicodeError: no host can have this name
        reason = getattr(error, "strerror", None) or "it is not a host name"
        raise UserError(f"there is no address {host!r:.80} here ({reason}): use 127.0.0.1.") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise UserError(
            f"{host}:{port} cannot be taken ({error.strerror}): choose another --port."
        ) from error
    return bound


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

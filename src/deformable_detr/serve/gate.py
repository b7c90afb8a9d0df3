"""A plain ASGI middleware that guards the application.

It checks the host name of every request, adds security headers to every answer, and counts the requests.
Requests under /v1/ and /v2/models/ and for /metrics need the token, if there is one, and are refused if a
page of another site sends them. POST requests under /v1/ and /v2/models/ are limited in bytes and time; the
bytes of a body are counted while it arrives.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import time
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .engine import Engine
from .refusals import Kind, Refusal

log = logging.getLogger(__name__)

# The page may load only its own files, and pictures that it created itself.
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SECURITY_HEADERS = {
    "Content-Security-Policy": CONTENT_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}
# A body over the limit is read and discarded, up to this size and time, so that the client can read the
# answer: a client that is still sending when the connection closes only sees the connection fail.
THROWN_AWAY_BYTES, THROWN_AWAY_S = 256 * 1024 * 1024, 10.0
GONE = "client gone"


class Gate:
    """ASGI middleware that wraps an application and enforces the limits of the engine's settings."""

    def __init__(self, app: ASGIApp, engine: Engine):
        self.app, self.engine = app, engine
        self.settings, self.metrics = engine.settings, engine.metrics
        self.requests = 0  # requests being answered
        self.held = 0  # bytes of all bodies in memory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, answer = time.perf_counter(), _Answer(send)
        self.requests += 1
        try:
            await self._answer(scope, receive, answer)
        except Refusal as refusal:
            self.metrics.errors.labels(refusal.kind.value).inc()
            if not answer.started:
                await refusal.response(as_text=is_protocol(scope))(scope, receive, answer.send)
        except Exception:
            answer.status = answer.status or "500"
            self.metrics.errors.labels(Kind.INTERNAL.value).inc()
            log.exception("a bug of the server: %s %s", scope["method"], route_of(scope))
            if not answer.started:
                bug = Refusal(Kind.INTERNAL, "this is a bug of the server: its log says where.")
                await bug.response(as_text=is_protocol(scope))(scope, receive, answer.send)
        finally:
            self.requests -= 1
            route = _label(route_of(scope))
            self.metrics.requests.labels(route, answer.status or GONE).inc()
            self.metrics.request_seconds.labels(route).observe(time.perf_counter() - start)

    async def _answer(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        path, headers = route_of(scope), Headers(scope=scope)
        self._check_host(headers)
        guarded = path.startswith(("/v1/", "/v2/models/"))
        if guarded or path == "/metrics":
            self._check_sender(headers)
        if not guarded or scope["method"] != "POST":
            await self.app(scope, receive, answer.send)
            return
        self.engine.check_open()
        deadline = time.monotonic() + self.settings.timeout_s
        body = bytearray()
        try:
            await self._read(body, headers, receive, deadline)
            await self._run(scope, receive, answer, bytes(body), deadline)
        finally:
            self._hold(-len(body))

    def _check_host(self, headers: Headers) -> None:
        """Raise a `Refusal` for an unknown host name.

        Unlike an IP address, a name can be made to point to this machine (DNS rebinding). A missing Host
        header is accepted, because browsers always send one.
        """
        try:
            host = urlsplit(f"//{headers.get('host', '')}").hostname or "localhost"
        except ValueError:  # brackets that do not enclose an address
            host = "?"
        allowed = {name.lower() for name in self.settings.allowed_hosts}
        if host == "localhost" or "*" in allowed or host in allowed or _is_address(host):
            return
        raise Refusal(
            Kind.FORBIDDEN,
            f"the server does not answer to the name {host[:100]!r}: use its address, or start it with "
            "--allowed-host NAME.",
        )

    def _check_sender(self, headers: Headers) -> None:
        if headers.get("sec-fetch-site") == "cross-site":
            # The other page could not read the answer, but it could keep the model busy.
            raise Refusal(Kind.FORBIDDEN, "another site's page may not use this server.")
        token = self.settings.token
        if token is None:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(given.strip().encode("latin-1"), token.encode())
        if scheme.lower() != "bearer" or not same:
            raise Refusal(Kind.UNAUTHORIZED, "send the server's token: Authorization: Bearer TOKEN.")

    # ------------------------------------------------------------------ the body

    async def _read(self, body: bytearray, headers: Headers, receive: Receive, deadline: float) -> None:
        """Append the request's body to `body`; refuse the request if a limit of bytes or time is exceeded.

        The rest of a body that is too large is read and discarded before the refusal, within limits.
        `deadline` is a time of `time.monotonic`.

        Raises:
            Refusal: if the body is too large or too slow, all bodies together are too large, or the client
                disconnects before the body is complete.
        """
        limit = self.settings.max_body_bytes
        announced = headers.get("content-length", "")
        too_large = Refusal(
            Kind.BODY_TOO_LARGE, f"the body is larger than the server's limit of {limit:,} bytes."
        )
        if announced.isdecimal() and int(announced) > limit:
            if int(announced) <= THROWN_AWAY_BYTES:
                await _throw_away(receive)
            raise too_large
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                async for chunk in _chunks(receive):
                    if len(body) + len(chunk) > limit:
                        self._hold(-len(body))
                        body.clear()
                        await _throw_away(receive)
                        raise too_large
                    if self.held + len(chunk) > self.settings.max_bytes_in_flight:
                        raise self.engine.busy("it holds as many bytes as it may")
                    body += chunk
                    self._hold(len(chunk))
        except TimeoutError:
            raise Refusal(
                Kind.SLOW_BODY, f"the body did not arrive within {self.settings.timeout_s:g} s."
            ) from None

    def _hold(self, number: int) -> None:
        self.held += number
        self.metrics.held.set(self.held)

    # ------------------------------------------------------------------ the answer

    async def _run(
        self, scope: Scope, receive: Receive, answer: _Answer, body: bytes, deadline: float
    ) -> None:
        """Run the application until it has answered or the client has disconnected.

        `deadline` is a time of `time.monotonic`. An exception of the application is raised here.

        Raises:
            Refusal: if neither happens before `deadline`.
        """
        work = asyncio.ensure_future(self.app(scope, _replay(body, receive), answer.send))
        gone = asyncio.ensure_future(_disconnection(receive))
        try:
            await asyncio.wait(
                {work, gone},
                timeout=max(0.0, deadline - time.monotonic()),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if work.done():
                work.result()
            elif not gone.done():
                raise Refusal(
                    Kind.TIMEOUT,
                    f"no answer within {self.settings.timeout_s:g} s: send fewer or smaller pictures.",
                )
        finally:
            for task in (work, gone):
                if not task.done():
                    task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class _Answer:
    """A wrapper around ASGI's `send` that adds missing security headers and records the status."""

    def __init__(self, send: Send):
        self._send = send
        self.status = ""  # empty until the answer starts
        self.started = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started, self.status = True, str(message["status"])
            headers = MutableHeaders(scope=message)
            for name, value in SECURITY_HEADERS.items():
                headers.setdefault(name, value)
        await self._send(message)


def route_of(scope: Scope) -> str:
    """Return a request's path without `root_path`, the prefix under which a proxy publishes the server."""
    path: str = scope["path"]
    prefix = scope.get("root_path", "").rstrip("/")
    inside = path == prefix or path.startswith(f"{prefix}/")
    return path.removeprefix(prefix) if inside else path


ROUTES = ("/", "/v1/detect", "/v1/explain", "/v1/model", "/healthz", "/readyz", "/metrics", "/docs")


def is_protocol(scope: Scope) -> bool:
    """Return True if the path begins with /v2/ (Open Inference Protocol); its errors are plain strings."""
    return route_of(scope).startswith("/v2/")


def _label(path: str) -> str:
    """Return a path's label for the metrics; unknown paths share one, so that there are only a few labels."""
    if path.startswith("/static/") or path == "/openapi.json":
        return "static"
    if path.startswith("/v2"):
        return "/v2 infer" if path.endswith("/infer") else "/v2"
    return path if path in ROUTES else "other"


async def _chunks(receive: Receive) -> AsyncIterator[bytes]:
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refusal(Kind.MALFORMED, "the connection was closed before the body was complete.")
        yield message.get("body", b"")
        more = message.get("more_body", False)


async def _throw_away(receive: Receive) -> None:
    try:
        async with asyncio.timeout(THROWN_AWAY_S):
            seen = 0
            async for chunk in _chunks(receive):
                seen += len(chunk)
                if seen > THROWN_AWAY_BYTES:
                    return
    except (TimeoutError, Refusal):
        return


def _replay(body: bytes, receive: Receive) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        if messages:
            return messages.pop()
        await asyncio.Event().wait()  # the gate itself listens for messages after the body
        raise AssertionError

    return replayed


async def _disconnection(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

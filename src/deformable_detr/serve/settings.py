"""The settings of a server, mostly limits, with their defaults."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import UserError

MEGABYTE = 1024 * 1024


@dataclass(frozen=True)
class ServeSettings:
    """The name and the limits of a server, and the host names and the token with which it may be used.

    Attributes:
        name: the model's name in answers, on the page and in the metrics.
        max_batch: maximum number of pictures, resized to the same shape, that are computed together.
        batch_wait_ms: maximum time in milliseconds, from 0 to 1000, that a picture waits for others of its
            shape; it waits only while more are expected.
        queue_size: maximum number of pictures accepted and not yet answered; more are refused with 429.
        max_pictures: maximum number of pictures in one request; more are refused with 413.
        max_body_bytes: maximum size of one request body in bytes, counted while it arrives; a larger one is
            refused with 413.
        max_bytes_in_flight: maximum size in bytes of all request bodies in memory at once; more are refused
            with 429.
        max_pixels: maximum number of pixels of a picture, read from its header before it is decoded. If the
            model's own limit is lower, that limit applies.
        max_detections: maximum value of the parameter `max_detections` of a request.
        timeout_s: time limit in seconds, at most 3600, for a body to arrive (408) and for a request to be
            answered (504).
        decode_threads: maximum number of pictures decoded at once.
        allowed_hosts: names that a request's Host header may have in addition to `localhost` and IP
            addresses; `*` allows any. Other names are refused, because otherwise a page of another site whose
            name points to this machine could use the server (DNS rebinding).
        token: the token that `Authorization: Bearer …` must contain; None if no token is required.

    Raises:
        UserError: if a limit is out of range or contradicts another one, or the token has fewer than 8
            characters, a space, or a character that is not printable ASCII.
    """

    name: str = "model"
    max_batch: int = 4
    batch_wait_ms: float = 5.0
    queue_size: int = 128
    max_pictures: int = 16
    max_body_bytes: int = 32 * MEGABYTE
    max_bytes_in_flight: int = 256 * MEGABYTE
    max_pixels: int = 40_000_000
    max_detections: int = 300
    timeout_s: float = 30.0
    decode_threads: int = 2
    allowed_hosts: tuple[str, ...] = ()
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name in (
            "max_batch",
            "queue_size",
            "max_pictures",
            "max_body_bytes",
            "max_bytes_in_flight",
            "max_pixels",
            "max_detections",
            "decode_threads",
        ):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if not 0 <= self.batch_wait_ms <= 1000:
            raise UserError(f"batch_wait_ms must be from 0 to 1000, not {self.batch_wait_ms}.")
        if not 0 < self.timeout_s <= 3600:
            raise UserError(f"timeout_s must be above 0 and at most 3600, not {self.timeout_s}.")
        if self.max_pictures > self.queue_size:
            raise UserError(
                f"queue_size ({self.queue_size}) must hold a request's max_pictures ({self.max_pictures}): "
                "raise the one or lower the other."
            )
        if self.max_body_bytes > self.max_bytes_in_flight:
            raise UserError(
                f"max_bytes_in_flight ({self.max_bytes_in_flight}) must hold one body of max_body_bytes "
                f"({self.max_body_bytes}): raise the one or lower the other."
            )
        if self.token is not None and (len(self.token) < 8 or not _is_token(self.token)):
            raise UserError(
                "the token must be at least 8 of the letters, digits and signs that a header can hold: "
                "make one with `openssl rand -hex 32`."
            )


def _is_token(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text

"""Answers to requests that get no result, of the form `{"error": {"kind": …, "message": …}}`.

On the routes of the Open Inference Protocol, the form is `{"error": "KIND: MESSAGE"}`.
"""

from __future__ import annotations

from enum import StrEnum

from starlette.responses import JSONResponse


class Kind(StrEnum):
    """The reason why a request got no result, and the status of the answer.

    Programs read this value; the message with it is for people.
    """

    status: int

    def __new__(cls, value: str, status: int) -> Kind:
        kind = str.__new__(cls, value)
        kind._value_, kind.status = value, status
        return kind

    MALFORMED = "malformed", 400  # not JSON, not multipart
    UNAUTHORIZED = "unauthorized", 401
    FORBIDDEN = "forbidden", 403  # sent by another site's page, or to an unknown host name
    NOT_FOUND = "not_found", 404
    METHOD = "method_not_allowed", 405
    SLOW_BODY = "slow_body", 408
    BODY_TOO_LARGE = "body_too_large", 413
    TOO_MANY_PICTURES = "too_many_pictures", 413
    TOO_MANY_PIXELS = "too_many_pixels", 413
    MEDIA_TYPE = "unsupported_media_type", 415
    INVALID = "invalid", 422  # a parameter, or the JSON's content
    NOT_AN_IMAGE = "not_an_image", 422
    BUSY = "busy", 429
    INTERNAL = "internal", 500
    CANNOT_EXPLAIN = "cannot_explain", 501
    STARTING = "starting", 503
    STOPPING = "stopping", 503
    FAILED = "failed", 503  # the model could not be warmed up
    TIMEOUT = "timeout", 504


MEANINGS = {
    400: "The body is not the JSON or multipart that it says it is.",
    401: "The token is missing or wrong.",
    403: "Sent by another site's page, or to a name that is not allowed.",
    408: "The body did not arrive in time.",
    413: "Too many bytes, pictures, or pixels in a picture.",
    415: "The body is neither multipart/form-data nor application/json.",
    422: "A parameter is out of its range, or a file is not a picture.",
    429: "The queue is full: try again after `Retry-After` seconds.",
    500: "A bug of the server.",
    501: "This model cannot be explained.",
    503: "The server is starting or stopping.",
    504: "The answer took too long.",
}


class Refusal(Exception):  # noqa: N818 - most refusals are not errors
    """An exception that refuses a request.

    `message` is one sentence. `retry_after` is the time in seconds after which the client may try again, or
    None if the answer does not state a time.
    """

    def __init__(self, kind: Kind, message: str, retry_after: int | None = None):
        super().__init__(message)
        self.kind, self.message, self.retry_after = kind, message, retry_after

    def response(self, *, as_text: bool = False) -> JSONResponse:
        """Return the answer to the request that is refused: JSON with the entry `error`.

        The entry is an object with `kind` and `message` or, with `as_text`, a single string, as the Open
        Inference Protocol requires.
        """
        headers = {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        if self.kind is Kind.UNAUTHORIZED:
            headers["WWW-Authenticate"] = "Bearer"
        error = {"kind": self.kind.value, "message": self.message}
        body = {"error": f"{self.kind.value}: {self.message}" if as_text else error}
        return JSONResponse(body, self.kind.status, headers)

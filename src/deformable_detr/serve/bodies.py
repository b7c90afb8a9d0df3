"""Read pictures from a request body, which is multipart/form-data or JSON with base64.

Nothing is written to disk.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncGenerator
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from .engine import Engine
from .refusals import Kind, Refusal
from .uploads import Upload

FIELD = "images"
CHUNK = 256 * 1024
LONGEST_NAME = 200
MOST_PARTS = 1000
MOST_SIGNS = 4000  # per kind of JSON punctuation: a request with 16 pictures has about 40 quotation marks
Schema = TypeVar("Schema", bound=BaseModel)
WHITESPACE = b" \t\r\n\v\f"
JSON, MULTIPART = "application/json", "multipart/form-data"


class Base64Pictures(BaseModel):
    """Pictures encoded as base64 text."""

    model_config = ConfigDict(extra="forbid", strict=True)

    images: list[str] = Field(
        min_length=1,
        description="The bytes of JPEG, PNG, WebP, … files in base64, or data: URLs of such files.",
        json_schema_extra={"items": {"type": "string", "contentEncoding": "base64"}},
    )


def body_schema(most: int) -> dict[str, Any]:
    """Return OpenAPI's description of a request body with at most `most` pictures."""
    # The limit is stated in words: exceeding it is answered with 413, violating a schema with 422.
    limit = f"At most {most}: more are refused with 413."
    file = {"type": "string", "format": "binary"}
    files = {"type": "array", "minItems": 1, "items": file, "description": limit}
    form = {"type": "object", "properties": {FIELD: files}, "required": [FIELD]}
    text = Base64Pictures.model_json_schema()
    text["properties"][FIELD]["description"] += f" {limit}"
    return {
        "required": True,
        "content": {MULTIPART: {"schema": form}, JSON: {"schema": text}},
    }


async def pictures_of(body: bytes, headers: Headers, engine: Engine, most: int) -> list[Upload]:
    """Return the pictures of a request body in their order, at least one and at most `most`.

    The body is multipart/form-data with files named "images", or JSON with a list "images" of base64 strings.
    JSON is parsed in a thread of `engine`.

    Raises:
        Refusal: if the content type in `headers` is neither multipart/form-data nor application/json, or the
            body is compressed or malformed, has other fields, or contains no picture or too many.
    """
    check_uncompressed(headers)
    kind = headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == MULTIPART:
        uploads = await _of_multipart(body, headers)
    elif kind == JSON:
        uploads = await engine.in_background(_of_json, body, most)
    else:
        raise Refusal(
            Kind.MEDIA_TYPE,
            f'send {MULTIPART} with files named "{FIELD}", or {JSON} with {{"{FIELD}": [base64, …]}}.',
        )
    if len(uploads) > most:
        sentence = (
            f"the request holds {len(uploads)} pictures, and {most} is the limit: send several requests."
        )
        raise Refusal(Kind.TOO_MANY_PICTURES, sentence)
    return uploads


def check_uncompressed(headers: Headers) -> None:
    """Raise a `Refusal` if the header Content-Encoding states that the body is compressed."""
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal(Kind.MEDIA_TYPE, "the body is compressed: send it as it is.")


# ---------------------------------------------------------------------- JSON


def _of_json(body: bytes, most: int) -> list[Upload]:
    texts = read_json_body(body, most, Base64Pictures).images
    return [upload_of_base64(text, number) for number, text in enumerate(texts, 1)]


def read_json_body(body: bytes, most: int, schema: type[Schema]) -> Schema:
    """Parse the JSON of a request with at most `most` pictures, and return it as an instance of `schema`.

    The caller checks the exact number of pictures.

    Raises:
        Refusal: if `body` is not JSON, does not fit the schema, or contains far more values than `most`
            pictures need.
    """
    # Parsing millions of values would take half a minute, during which nothing else is answered.
    limit = MOST_SIGNS + 8 * most
    if any(_has_more_than(limit, sign, body) for sign in (b'"', b",", b"[", b"{")):
        raise Refusal(
            Kind.TOO_MANY_PICTURES,
            f"the JSON holds more than {limit:,} quotation marks, commas or brackets, and {most} pictures "
            "are the limit: send several requests.",
        )
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            raise Refusal(Kind.MALFORMED, f"the body is not JSON: {first['msg']}.") from error
        where = ".".join(str(part) for part in first["loc"]) or "the body"
        raise Refusal(Kind.INVALID, f"{where}: {first['msg']}.") from error


def _has_more_than(limit: int, sign: bytes, body: bytes) -> bool:
    """Return True if `sign` occurs more than `limit` times, without searching further than necessary."""
    place = -1
    for _ in range(limit + 1):
        place = body.find(sign, place + 1)
        if place < 0:
            return False
    return True


def upload_of_base64(text: str, number: int) -> Upload:
    """Return the picture file that was sent as base64 or as a `data:` URL with base64.

    Only the base64 is decoded, not the picture. Error messages state `number`, which is the picture's
    position in the request, counted from 1.

    Raises:
        Refusal: if `text` is not base64, or is a `data:` URL without base64.
    """
    label = f"picture {number}"
    if text.startswith("data:"):
        head, _, text = text.partition(",")
        if not head.endswith(";base64"):
            raise Refusal(Kind.INVALID, f"{label} is a data: URL without base64: encode it.")
    try:
        # Many encoders insert line breaks; any other character outside the alphabet is a mistake.
        content = base64.b64decode(text.encode("ascii").translate(None, WHITESPACE), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refusal(Kind.INVALID, f"{label} is not base64: encode the bytes of the file.") from error
    return Upload(content, None, label)


# ---------------------------------------------------------------------- multipart


class _InMemory(MultiPartParser):
    """Starlette's multipart parser without temporary files, since the body is bounded and already in memory.

    `complete` is False until the last boundary has been read.
    """

    spool_max_size = 2**62
    complete = False

    def on_end(self) -> None:
        self.complete = True


async def _of_multipart(body: bytes, headers: Headers) -> list[Upload]:
    async def chunks() -> AsyncGenerator[bytes, None]:
        for start in range(0, len(body), CHUNK):
            yield body[start : start + CHUNK]
            await asyncio.sleep(0)  # let other requests proceed
        if not parser.complete:
            raise MultiPartException("It ends before its last boundary.")

    # Only UTF-8: other encodings could make names with half characters, which no answer can contain.
    kind = headers["content-type"].partition(";")[2]
    options = [option for option in kind.split(";") if not option.strip().lower().startswith("charset")]
    plain = Headers({"content-type": ";".join([MULTIPART, *options])})
    parser = _InMemory(plain, chunks(), max_files=MOST_PARTS, max_fields=MOST_PARTS)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Refusal(
            Kind.MALFORMED, f"the multipart body is broken: {error.message.rstrip('.')}."
        ) from error
    try:
        return _of_form(form)
    finally:
        await form.close()


def _of_form(form: FormData) -> list[Upload]:
    uploads: list[Upload] = []
    for name, value in form.multi_items():
        if not isinstance(value, UploadFile):
            raise Refusal(
                Kind.INVALID,
                f'the form\'s field "{name[:LONGEST_NAME]}" is not a file: files are sent as "{FIELD}", '
                "parameters in the address (?threshold=0.5).",
            )
        if name != FIELD:
            raise Refusal(
                Kind.INVALID, f'a file is sent as "{name[:LONGEST_NAME]}": name all of them "{FIELD}".'
            )
        file_name = (value.filename or "")[:LONGEST_NAME] or None
        label = f"picture {len(uploads) + 1}" + (f' ("{file_name}")' if file_name else "")
        uploads.append(Upload(value.file.read(), file_name, label))
    if not uploads:
        raise Refusal(Kind.INVALID, f'the form holds no file: send at least one as "{FIELD}".')
    return uploads

"""The Open Inference Protocol (KServe's V2) over HTTP, for clients and platforms that use it.

A request contains the first of these tensors, and its answer contains the others, for N pictures with D
detections in total:

    images          BYTES (N)       files (JPEG, PNG, …): binary, or base64 in JSON
    num_detections  INT64 (N)       number of detections in each picture
    boxes_xyxy      FP32  (D, 4)    x0, y0, x1, y1 in pixels; picture by picture, best first
    scores          FP32  (D)
    labels          INT64 (D)       class indices
    category_ids    INT64 (D)       the data set's own ids
    names           BYTES (D)

Requests may contain binary tensors; answers are always JSON, which the protocol allows. An error is
a plain string, as the protocol requires: `{"error": "…"}` (`Refusal.response`).
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal

import numpy as np
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .. import __version__
from ..detections import Detections
from .bodies import check_uncompressed, read_json_body, upload_of_base64
from .engine import Engine, State
from .refusals import Kind, Refusal
from .uploads import Upload

INPUT = "images"
OUTPUTS: dict[str, tuple[str, list[int]]] = {
    "num_detections": ("INT64", [-1]),
    "boxes_xyxy": ("FP32", [-1, 4]),
    "scores": ("FP32", [-1]),
    "labels": ("INT64", [-1]),
    "category_ids": ("INT64", [-1]),
    "names": ("BYTES", [-1]),
}
VERSION = "1"  # the version of the only model; the protocol requires a version
LENGTH_HEADER = "inference-header-content-length"
Handler = Callable[[Request], Awaitable[Response]]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _InputParameters(_Strict):
    binary_data_size: int | None = Field(default=None, ge=0)


class _Input(_Strict):
    name: Literal["images"]
    datatype: Literal["BYTES"]
    shape: list[int] = Field(min_length=1, max_length=4)
    parameters: _InputParameters = _InputParameters()
    data: list[str] | None = None


class _Output(_Strict):
    name: str
    parameters: dict[str, bool | int | str] = {}


class _Parameters(_Strict):
    threshold: float | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)
    max_detections: int | None = Field(default=None, ge=1)
    binary_data_output: bool | None = None


class _InferRequest(_Strict):
    id: str | None = Field(default=None, max_length=1000)
    inputs: list[_Input] = Field(min_length=1, max_length=1)
    outputs: list[_Output] | None = None
    parameters: _Parameters = _Parameters()


def add_inference_protocol(api: FastAPI, engine: Engine) -> None:
    """Add the addresses of the Open Inference Protocol, which begin with /v2, to the application `api`."""
    name = engine.settings.name

    def route(path: str, handler: Handler, method: str = "GET") -> None:
        api.add_route(path, handler, [method], include_in_schema=False)

    def check_model(request: Request) -> None:
        asked = request.path_params["name"]
        version = request.path_params.get("version", VERSION)
        if (asked, version) != (name, VERSION):
            raise Refusal(
                Kind.NOT_FOUND,
                f"there is no model {asked[:100]!r} of version {version[:20]}: this server has {name!r} of "
                f"version {VERSION}.",
            )

    async def server(request: Request) -> Response:
        return JSONResponse({"name": "deformable-detr", "version": __version__, "extensions": []})

    async def live(request: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(request: Request) -> Response:
        is_ready = engine.state is State.READY
        return JSONResponse({"ready": is_ready}, 200 if is_ready else 503)

    async def model(request: Request) -> Response:
        check_model(request)
        return JSONResponse(_description(name))

    async def model_ready(request: Request) -> Response:
        check_model(request)
        is_ready = engine.state is State.READY
        return JSONResponse({"name": name, "ready": is_ready}, 200 if is_ready else 503)

    async def infer(request: Request) -> Response:
        check_model(request)
        return JSONResponse(await _infer(request, engine))

    route("/v2", server)
    route("/v2/health/live", live)
    route("/v2/health/ready", ready)
    for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        route(path, model)
        route(f"{path}/ready", model_ready)
        route(f"{path}/infer", infer, "POST")


def _description(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "versions": [VERSION],
        "platform": "deformable_detr",
        "inputs": [{"name": INPUT, "datatype": "BYTES", "shape": [-1]}],
        "outputs": [
            {"name": output, "datatype": datatype, "shape": shape}
            for output, (datatype, shape) in OUTPUTS.items()
        ],
    }


async def _infer(request: Request, engine: Engine) -> dict[str, Any]:
    check_uncompressed(request.headers)
    length = request.headers.get(LENGTH_HEADER)
    body = await request.body()
    asked, uploads = await engine.in_background(_read, body, length, engine.settings.max_pictures)
    most = engine.settings.max_detections
    max_detections = asked.parameters.max_detections or min(100, most)
    if max_detections > most:
        raise Refusal(Kind.INVALID, f"max_detections must be at most {most}, not {max_detections}.")
    wanted = list(OUTPUTS) if asked.outputs is None else [output.name for output in asked.outputs]
    for output in wanted:
        if output not in OUTPUTS:
            raise Refusal(Kind.INVALID, f"there is no output {output[:100]!r}: choose {', '.join(OUTPUTS)}.")
    found = await engine.detect(
        uploads, engine.detector.selection(asked.parameters.threshold), max_detections
    )
    tensors = _tensors(found)
    answer: dict[str, Any] = {"model_name": engine.settings.name, "model_version": VERSION}
    if asked.id is not None:
        answer["id"] = asked.id
    answer["outputs"] = [
        {"name": output, "datatype": OUTPUTS[output][0], "shape": shape, "data": data}
        for output, (shape, data) in tensors.items()
        if output in wanted
    ]
    return answer


def _tensors(found: Sequence[Detections]) -> dict[str, tuple[list[int], list[Any]]]:
    """Return the shape and the flat list of values of each output, by the output's name."""
    total = sum(map(len, found))
    boxes = np.concatenate([each.boxes_xyxy for each in found]).astype(float)
    return {
        "num_detections": ([len(found)], [len(each) for each in found]),
        "boxes_xyxy": ([total, 4], boxes.reshape(-1).tolist()),
        "scores": ([total], [float(score) for each in found for score in each.scores]),
        "labels": ([total], [int(label) for each in found for label in each.labels]),
        "category_ids": ([total], [int(number) for each in found for number in each.category_ids]),
        "names": ([total], [name for each in found for name in each.names]),
    }


# ---------------------------------------------------------------------- the body, in a thread


def _read(body: bytes, length: str | None, most: int) -> tuple[_InferRequest, list[Upload]]:
    """Split a body into its JSON and the binary data after it, and return the request and its pictures.

    `length` is the header Inference-Header-Content-Length, which states the length of the JSON in bytes, or
    None if the whole body is JSON.

    Raises:
        Refusal: if the body is malformed or does not contain from 1 to `most` pictures.
    """
    end = len(body)
    if length is not None:
        if not (length.isascii() and length.isdecimal() and len(length) < 20 and int(length) <= end):
            raise Refusal(Kind.MALFORMED, f"{LENGTH_HEADER} must be a length within the body of {end} bytes.")
        end = int(length)
    asked = read_json_body(body[:end], most, _InferRequest)
    (tensor,) = asked.inputs
    number = math.prod(tensor.shape)
    if not 1 <= number <= most:
        kind = Kind.TOO_MANY_PICTURES if number > most else Kind.INVALID
        raise Refusal(kind, f"{INPUT} must hold from 1 to {most} pictures, not shape {tensor.shape}.")
    size = tensor.parameters.binary_data_size
    if (size is None) == (tensor.data is None):
        raise Refusal(Kind.INVALID, f"{INPUT} must have either data or the parameter binary_data_size.")
    if tensor.data is not None:
        uploads = [upload_of_base64(text, index) for index, text in enumerate(tensor.data, 1)]
    elif size != len(body) - end:
        raise Refusal(
            Kind.MALFORMED, f"{len(body) - end} bytes follow the JSON, but binary_data_size is {size}."
        )
    else:
        uploads = _elements(memoryview(body)[end:])
    if len(uploads) != number:
        raise Refusal(Kind.INVALID, f"{INPUT} has shape {tensor.shape}, but holds {len(uploads)} pictures.")
    return asked, uploads


def _elements(data: memoryview) -> list[Upload]:
    """Return the pictures in a binary BYTES tensor.

    Each element of the tensor consists of its length (four bytes, little-endian) and its bytes.

    Raises:
        Refusal: if the data ends within an element.
    """
    uploads: list[Upload] = []
    place = 0
    while place < len(data):
        start = place + 4
        place = start + int.from_bytes(data[place:start], "little")
        if start > len(data) or place > len(data):
            raise Refusal(Kind.MALFORMED, f"the binary data of {INPUT} ends within an element.")
        uploads.append(Upload(bytes(data[start:place]), None, f"picture {len(uploads) + 1}"))
    return uploads

"""The Open Inference Protocol, spoken by NVIDIA's client, and requests that break it."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from deformable_detr.inference.detector import Detector
from deformable_detr.serve import ServeSettings, create_app
from deformable_detr.serve.inference_protocol import OUTPUTS
from deformable_detr.serve.server import ServerProcess
from tests.support.matching import assert_same_detections
from tests.support.serving import (
    in_a_thread,
    picture,
    png,
    running,
    tiny_detector,
    until,
    wait_until,
    watch,
)

pytestmark = pytest.mark.anyio
INFER = "/v2/models/cells/infer"
SETTINGS = ServeSettings(name="cells", max_pictures=4)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def detector() -> Detector:
    return tiny_detector()


@pytest.fixture(scope="module")
def triton(detector: Detector) -> Iterator[InferenceServerClient]:
    process = ServerProcess(create_app(detector, SETTINGS), "", False)
    with in_a_thread(process) as (address, _):
        client = InferenceServerClient(address.removeprefix("http://"), network_timeout=100.0)
        wait_until(client.is_server_ready)
        yield client
        client.close()


@pytest.fixture(scope="module")
async def client(detector: Detector) -> AsyncIterator[httpx.AsyncClient]:
    async with running(detector, SETTINGS) as (_, client):
        yield client


def tensor_of(pictures: list[np.ndarray], **options: Any) -> InferInput:
    tensor = InferInput("images", [len(pictures)], "BYTES")
    contents = [png(each) for each in pictures]
    if options.get("binary_data") is False:
        contents = [base64.b64encode(content) for content in contents]
    return tensor.set_data_from_numpy(np.array(contents, dtype=object), **options)


def body_of(**changes: Any) -> dict[str, Any]:
    text = base64.b64encode(png(picture())).decode()
    tensor = {"name": "images", "datatype": "BYTES", "shape": [1], "data": [text]}
    return {"inputs": [{**tensor, **changes}]}


# ---------------------------------------------------------------------- the client


def test_the_client_finds_the_server_and_its_model(triton: InferenceServerClient) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("cells")
    assert triton.is_model_ready("cells", "1")
    assert not triton.is_model_ready("other")
    assert triton.get_server_metadata()["name"] == "deformable-detr"
    about = triton.get_model_metadata("cells")
    assert (about["name"], about["versions"]) == ("cells", ["1"])
    assert [tensor["name"] for tensor in about["inputs"]] == ["images"]
    assert {tensor["name"] for tensor in about["outputs"]} == set(OUTPUTS)


@pytest.mark.parametrize("binary", [True, False])
def test_the_client_gets_the_detections_of_predict(
    triton: InferenceServerClient, detector: Detector, binary: bool
) -> None:
    pictures = [picture(0), picture(1, (90, 64)), picture(2)]
    expected = detector.predict(list(pictures), 0.1, max_detections=7)
    result = triton.infer(
        "cells",
        [tensor_of(pictures, binary_data=binary)],
        request_id="seven",
        parameters={"threshold": 0.1, "max_detections": 7},
    )
    assert result.get_response()["id"] == "seven"
    found = {name: result.as_numpy(name) for name in OUTPUTS}
    ends = np.cumsum(found["num_detections"])
    assert ends[-1] == len(found["scores"]) > 0
    for end, count, detections in zip(ends, found["num_detections"], expected, strict=True):
        part = slice(end - count, end)
        rows = SimpleNamespace(
            boxes_xyxy=found["boxes_xyxy"][part],
            scores=found["scores"][part],
            names=list(found["names"][part]),
        )
        assert_same_detections(rows, detections, score=1e-5, box=4e-3)
        known = set(zip(detections.names, detections.labels, detections.category_ids, strict=True))
        assert (
            set(zip(found["names"][part], found["labels"][part], found["category_ids"][part], strict=True))
            == known
        )


def test_the_client_chooses_outputs(triton: InferenceServerClient) -> None:
    outputs = [InferRequestedOutput("scores"), InferRequestedOutput("num_detections", binary_data=False)]
    result = triton.infer("cells", [tensor_of([picture()])], outputs=outputs, parameters={"threshold": 1.0})
    assert {output["name"] for output in result.get_response()["outputs"]} == {"scores", "num_detections"}
    assert result.as_numpy("scores").shape == (0,)
    assert result.as_numpy("num_detections").tolist() == [0]


def test_the_client_reads_errors(triton: InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match=r"not_found: .*'other'"):
        triton.infer("other", [tensor_of([picture()])])
    with pytest.raises(InferenceServerException, match=r"too_many_pictures: .*4 pictures"):
        triton.infer("cells", [tensor_of([picture()] * 5)])


# ---------------------------------------------------------------------- requests that break the protocol


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({"name": "image"}, 422, "inputs.0.name"),
        ({"datatype": "FP32"}, 422, "inputs.0.datatype"),
        ({"shape": [2]}, 422, "shape"),
        ({"shape": [0]}, 422, "from 1 to 4"),
        ({"shape": [-1]}, 422, "from 1 to 4"),
        ({"shape": [5]}, 413, "from 1 to 4"),
        ({"data": None}, 422, "either data or"),
        ({"data": ["%"]}, 422, "not base64"),
        ({"data": [base64.b64encode(b"text").decode()]}, 422, "picture 1"),
        ({"parameters": {"binary_data_size": 3}}, 422, "either data or"),
        ({"colour": "red"}, 422, "colour"),
    ],
)
async def test_wrong_tensors(client: httpx.AsyncClient, changes: Any, status: int, words: str) -> None:
    answer = await client.post(INFER, json=body_of(**changes))
    assert answer.status_code == status
    assert words in answer.json()["error"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"parameters": {"threshold": 2}}, "parameters.threshold"),
        ({"parameters": {"treshold": 0.5}}, "treshold"),
        ({"parameters": {"max_detections": 301}}, "at most 300"),
        ({"outputs": [{"name": "masks"}]}, "masks"),
        ({"inputs": []}, "inputs"),
    ],
)
async def test_wrong_requests(client: httpx.AsyncClient, changes: dict[str, Any], words: str) -> None:
    answer = await client.post(INFER, json={**body_of(), **changes})
    assert answer.status_code == 422
    assert words in answer.json()["error"]


@pytest.mark.parametrize(
    ("length", "binary", "size", "words"),
    [
        ("9999999", b"", 0, "header-content-length"),
        ("-1", b"", 0, "header-content-length"),
        ("x", b"", 0, "header-content-length"),
        (None, b"\5\0\0\0ab", 6, "ends within"),
        (None, b"\5\0", 2, "ends within"),
        (None, b"\2\0\0\0ab", 7, "6 bytes follow"),
    ],
)
async def test_wrong_binary_data(
    client: httpx.AsyncClient, length: str | None, binary: bytes, size: int, words: str
) -> None:
    tensor = {"name": "images", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": size}}
    text = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": length or str(len(text))}
    answer = await client.post(INFER, content=text + binary, headers=headers)
    assert answer.status_code == 400
    assert words in answer.json()["error"]


async def test_unknown_addresses_and_methods_get_an_error_of_the_protocol(client: httpx.AsyncClient) -> None:
    missing, wrong = await client.get("/v2/modls"), await client.get("/v2/models/cells/infer")
    assert (missing.status_code, wrong.status_code) == (404, 405)
    assert missing.json()["error"].startswith("not_found: ")
    assert wrong.json()["error"].startswith("method_not_allowed: this path takes POST, not GET")


async def test_compressed_bodies_are_refused(client: httpx.AsyncClient) -> None:
    answer = await client.post(INFER, content=b"x", headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 415
    assert "compressed" in answer.json()["error"]


async def test_json_with_far_too_many_values_is_not_parsed(client: httpx.AsyncClient) -> None:
    answer = await client.post(INFER, content=b'{"inputs": [' + b"[]," * 100_000)
    assert answer.status_code == 413


# ---------------------------------------------------------------------- limits of the server


async def test_the_limits_of_the_gate_hold(detector: Detector) -> None:
    settings = replace(SETTINGS, max_body_bytes=1000, token="a-long-secret")
    async with running(detector, settings) as (_, client):
        for path in ("/v2/health/live", "/v2/health/ready", "/v2"):
            assert (await client.get(path)).status_code == 200
        refused = await client.get("/v2/models/cells")
        assert refused.status_code == 401
        assert refused.json()["error"].startswith("unauthorized: ")
        headers = {"Authorization": "Bearer a-long-secret"}
        large = await client.post(INFER, content=bytes(2000), headers=headers)
        assert large.status_code == 413
        assert large.json()["error"].startswith("body_too_large: ")
        text = (await client.get("/metrics", headers=headers)).text
        assert 'requests_total{route="/v2 infer",status="413"} 1.0' in text
        assert 'errors_total{kind="body_too_large"} 1.0' in text


async def test_not_ready_while_the_model_warms_up_and_after_the_signal_to_stop() -> None:
    slow = tiny_detector()
    watched = watch(slow)
    watched.go.clear()
    try:
        async with running(slow, SETTINGS, wait=False) as (server, client):
            for path in ("/readyz", "/v2/health/ready", "/v2/models/cells/ready"):
                assert (await client.get(path)).status_code == 503
            assert (await client.get("/healthz")).status_code == 200
            assert (await client.get("/v2/health/live")).status_code == 200
            refused = await client.post(INFER, json=body_of())
            assert (refused.status_code, refused.headers["Retry-After"]) == (503, "2")
            watched.go.set()
            await until(lambda: server.engine.state == "ready")
            assert (await client.get("/v2/models/cells/ready")).json() == {"name": "cells", "ready": True}
            server.engine.stop()
            assert (await client.get("/v2/health/ready")).json() == {"ready": False}
    finally:
        watched.go.set()

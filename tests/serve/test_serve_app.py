"""The application: answers are the detector's, every limit holds, every refusal has one shape."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import re
import struct
import zlib
from collections.abc import AsyncIterator
from dataclasses import replace
from importlib.resources import files
from io import BytesIO
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from deformable_detr.checkpoint import Decision
from deformable_detr.errors import UserError
from deformable_detr.inference.detector import Detector
from deformable_detr.serve import ServeSettings, uploads
from deformable_detr.serve import engine as engine_module
from deformable_detr.serve import gate as gate_module
from deformable_detr.serve.gate import SECURITY_HEADERS, route_of
from tests.support.matching import assert_same_detections
from tests.support.serving import (
    EVIL,
    NAMES,
    form,
    kind_of,
    picture,
    png,
    running,
    tiny_detector,
    until,
    watch,
)
from tests.support.tiny import as_detr, tiny_config

pytestmark = pytest.mark.anyio
DETECT = "/v1/detect?threshold=0.1"
PNG = png(picture())


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def shared() -> Detector:
    """For tests that leave it as it is."""
    return tiny_detector()


@pytest.fixture(scope="module")
async def client(shared: Detector) -> AsyncIterator[httpx.AsyncClient]:
    """Of a server with the default settings."""
    async with running(shared) as (_, client):
        yield client


def assert_same(found: list[dict[str, Any]], detections: Any) -> None:
    rows = SimpleNamespace(
        boxes_xyxy=np.array([row["box_xyxy"] for row in found]),
        scores=np.array([row["score"] for row in found]),
        names=[row["name"] for row in found],
    )
    assert_same_detections(rows, detections, score=1e-5, box=4e-3)
    assert (np.diff(rows.scores) <= 0).all()
    known = set(zip(detections.names, detections.labels, detections.category_ids, strict=True))
    assert {(row["name"], row["label"], row["category_id"]) for row in found} == known


# ---------------------------------------------------------------------- detect


async def test_detections_are_those_of_predict(shared: Detector, client: httpx.AsyncClient) -> None:
    pictures = [picture(0), picture(1, (90, 64)), picture(2), picture(3, (33, 200))]
    expected = shared.predict(list(pictures), 0.1, max_detections=7)
    answer = await client.post(f"{DETECT}&max_detections=7", files=form(*map(png, pictures)))
    texts = [base64.b64encode(png(each)).decode() for each in pictures]
    texts[0] = "\n".join(re.findall(".{1,76}", texts[0]))  # as `base64` prints it
    texts[1] = f"data:image/png;base64,{texts[1]}"
    as_json = await client.post(f"{DETECT}&max_detections=7", json={"images": texts})
    assert answer.status_code == as_json.status_code == 200
    for given, names in ((answer, ["0.png", "1.png", "2.png", "3.png"]), (as_json, [None] * 4)):
        results = given.json()["results"]
        assert [result["file_name"] for result in results] == names
        for result, one, detections in zip(results, pictures, expected, strict=True):
            assert (result["height"], result["width"]) == one.shape[:2]
            assert_same(result["detections"], detections)


async def test_without_a_threshold_the_models_own_are_used() -> None:
    detector = tiny_detector()
    scores = detector.predict(picture(), 0.0, max_detections=300).scores
    middle = round(float(np.median(scores)), 4)
    decision = Decision((middle, 1.0, middle), ("own", "all classes", "own"), 0.8, "val", 9)
    detector = Detector.of(replace(detector.checkpoint, decision=decision), "cpu")
    expected = detector.predict(picture(), max_detections=100)
    assert 0 < len(expected) < len(scores)
    assert EVIL not in expected.names
    async with running(detector) as (_, client):
        about = (await client.get("/v1/model")).json()
        assert about["thresholds"] == pytest.approx([middle, 1.0, middle])
        assert "precision of at least 0.8 on val" in about["thresholds_from"]
        answer = (await client.post("/v1/detect", files=form(PNG))).json()
        assert answer["thresholds_from"] == about["thresholds_from"]
        assert_same(answer["results"][0]["detections"], expected)
        explained = (await client.post("/v1/explain", files=form(PNG))).json()
        assert explained["total"] == len(expected)
        assert explained["threshold"] is None
        asked = (await client.post("/v1/detect?threshold=1", files=form(PNG))).json()
        assert asked["results"][0]["detections"] == []
        assert asked["thresholds_from"] == "as requested"


async def test_parameters_choose_among_the_detections(shared: Detector, client: httpx.AsyncClient) -> None:
    everything = shared.predict(picture(), 0.0, max_detections=300)

    async def found(**parameters: Any) -> list[dict[str, Any]]:
        answer = await client.post("/v1/detect", params=parameters, files=form(PNG))
        assert answer.status_code == 200, answer.text
        rows: list[dict[str, Any]] = answer.json()["results"][0]["detections"]
        return rows

    assert_same(await found(threshold=0.3), everything.above(0.3))
    assert len(await found(threshold=0.0, max_detections=3)) == 3
    assert await found(threshold=1.0) == []
    wanted = [i for i, name in enumerate(everything.names) if name in ("car", EVIL)]
    both = await found(threshold=0.0, max_detections=300, classes=["car", EVIL])
    assert [row["label"] for row in both] == everything.labels[wanted].tolist()
    # the best of the class, not what is left of the best of all
    one = await found(threshold=0.0, max_detections=1, classes=[everything.names[-1]])
    assert [row["name"] for row in one] == [everything.names[-1]]
    answer = await client.post("/v1/detect?classes=cat", files=form(PNG))
    assert (answer.status_code, kind_of(answer)) == (422, "invalid")
    assert "'cat'" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "query", ["threshold=2", "threshold=nan", "threshold=x", "max_detections=0", "max_detections=301"]
)
async def test_parameters_out_of_range(client: httpx.AsyncClient, query: str) -> None:
    answer = await client.post(f"/v1/detect?{query}", files=form(PNG))
    assert (answer.status_code, kind_of(answer)) == (422, "invalid")
    assert query.split("=")[0] in answer.json()["error"]["message"]


async def test_pictures_of_equal_shape_share_batches_and_the_result_does_not_depend_on_it() -> None:
    detector = tiny_detector()
    pictures = [picture(seed, [(64, 80), (80, 64), (128, 160)][seed % 3]) for seed in range(18)]
    expected = [detector.predict(each, 0.1) for each in pictures]
    watched = watch(detector)
    async with running(detector, ServeSettings(max_batch=4)) as (server, client):
        watched.batches.clear()
        watched.go.clear()  # all arrive before the first is computed
        requests = [asyncio.create_task(client.post(DETECT, files=form(png(each)))) for each in pictures]
        # and decoded, as many as may be: else the model could be faster than the decoding threads
        await until(lambda: b'stage_seconds_count{stage="decode"} 16.0' in server.engine.metrics.text())
        assert server.engine.accepted == len(pictures)
        watched.go.set()
        answers = await asyncio.gather(*requests)
        metrics = (await client.get("/metrics")).text
    for answer, detections in zip(answers, expected, strict=True):
        assert_same(answer.json()["results"][0]["detections"], detections)
    sizes = [batch[0] for batch in watched.batches]
    assert sum(sizes) == len(pictures)
    assert max(sizes) == 4
    assert len({batch[2:] for batch in watched.batches}) == 2  # 64x80 and 128x160 are resized to one shape
    assert f"deformable_detr_batch_pictures_count {len(sizes)}.0" in metrics
    assert f"deformable_detr_batch_pictures_sum {len(pictures)}.0" in metrics


async def test_a_single_request_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    timeouts: list[float | None] = []
    wait_for = asyncio.wait_for

    async def noted(work: Any, timeout: float | None) -> Any:
        timeouts.append(timeout)
        return await wait_for(work, timeout)

    async with running(tiny_detector(), ServeSettings(batch_wait_ms=1000)) as (_, client):
        monkeypatch.setattr(engine_module.asyncio, "wait_for", noted)
        assert (await client.post(DETECT, files=form(PNG))).status_code == 200
        assert set(timeouts) <= {None}
        assert (await client.post(DETECT, files=form(PNG, png(picture(size=(300, 300)))))).status_code == 200


# ---------------------------------------------------------------------- explain


@pytest.mark.parametrize("config", [tiny_config(), as_detr(tiny_config())], ids=["points", "cells"])
async def test_explanations_are_those_of_the_detector(config: Any) -> None:
    detector = tiny_detector(config)
    explanation = detector.explain(picture(), 0.05, max_detections=6)
    async with running(detector) as (_, client):
        answer = await client.post("/v1/explain?threshold=0.05&max_detections=6", files=form(PNG))
    assert answer.status_code == 200
    data = answer.json()
    queries = explanation.queries
    assert data["total"] == len(data["detections"]) == len(explanation) > 0
    assert [row["query"] for row in data["detections"]] == queries.indices.tolist()
    np.testing.assert_allclose([row["boxes"] for row in data["detections"]], queries.boxes_xyxy, atol=0.006)
    weights = np.frombuffer(base64.b64decode(data["decoder"]["weights"]), "<u2") / 65535 * data["most"]
    np.testing.assert_allclose(
        weights.reshape(queries.attention.weights.shape), queries.attention.weights, atol=1e-4
    )
    assert (data["grid"] is None) == bool(data["decoder"]["locations"])


async def test_an_explanation_is_bounded(
    shared: Detector, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    explanation = shared.explain(picture(), 0.05, max_detections=10)
    monkeypatch.setattr(
        engine_module, "EXPLANATION_NUMBERS", 3 * 3 * explanation.queries.attention.weights[:1].size + 1
    )
    answer = await client.post("/v1/explain?threshold=0.05&max_detections=10", files=form(PNG))
    nothing = await client.post("/v1/explain?threshold=1", files=form(PNG))
    two = await client.post("/v1/explain", files=form(PNG, PNG))
    data = answer.json()
    assert (len(data["detections"]), data["total"]) == (3, len(explanation))
    assert (nothing.json()["detections"], nothing.json()["total"]) == ([], 0)
    assert (two.status_code, kind_of(two)) == (413, "too_many_pictures")


async def test_a_model_that_cannot_explain(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = tiny_detector()

    def refuse(*_: Any, **__: Any) -> None:
        raise UserError("an exported file cannot be explained.")

    monkeypatch.setattr(detector, "explain", refuse)
    async with running(detector) as (_, client):
        answer = await client.post("/v1/explain", files=form(PNG))
        assert (answer.status_code, kind_of(answer)) == (501, "cannot_explain")
        assert (await client.get("/v1/model")).json()["can_explain"] is False
        assert (await client.post(DETECT, files=form(PNG))).status_code == 200


# ---------------------------------------------------------------------- what is sent


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header announces that many pixels, with next to nothing behind it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


async def test_a_bomb_is_refused_by_its_header(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(uploads, "open_image", never)
    answer = await client.post(DETECT, files=form(bomb(60_000, 60_000)))
    assert (answer.status_code, kind_of(answer)) == (413, "too_many_pixels")
    assert "60000 x 60000" in answer.json()["error"]["message"]


async def test_the_models_own_limit_of_pixels_holds_too() -> None:
    detector = tiny_detector()
    detector.data = replace(detector.data, max_pixels=5000)
    async with running(detector) as (_, client):
        assert (await client.post(DETECT, files=form(PNG))).status_code == 413
        assert (await client.get("/v1/model")).json()["limits"]["max_pixels"] == 5000


def jpeg() -> bytes:
    buffer = BytesIO()
    Image.fromarray(picture(size=(200, 200))).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", jpeg()[:-2000], png(picture(size=(200, 200)))[:9000], b"\xff\xd8\xff", b"%!PS-Adobe-3.0"],
    ids=["empty", "text", "truncated jpeg", "truncated png", "three bytes", "postscript"],
)
async def test_what_is_no_picture(client: httpx.AsyncClient, content: bytes) -> None:
    answer = await client.post(DETECT, files=form(PNG, content))
    assert (answer.status_code, kind_of(answer)) == (422, "not_an_image")
    assert answer.json()["error"]["message"].startswith('picture 2 ("1.png"): ')
    explained = await client.post("/v1/explain", files=form(content))
    assert (explained.status_code, kind_of(explained)) == (422, "not_an_image")
    assert (await client.post(DETECT, files=form(PNG))).status_code == 200


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1)])
async def test_odd_shapes(client: httpx.AsyncClient, size: tuple[int, int]) -> None:
    answer = await client.post("/v1/detect?threshold=0", files=form(png(picture(size=size))))
    assert answer.status_code == 200
    assert len(answer.json()["results"][0]["detections"]) > 0


MULTIPART = "multipart/form-data; boundary=xx"
PART = b'--xx\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'


def parts(*given: tuple[bytes, bytes, bytes]) -> bytes:
    return b"".join(PART % each for each in given) + b"--xx--\r\n"


@pytest.mark.parametrize(
    ("kind", "body", "status", "error"),
    [
        ("text/plain", b"hello", 415, "unsupported_media_type"),
        ("image/png", PNG, 415, "unsupported_media_type"),
        ("", b"", 415, "unsupported_media_type"),
        ("multipart/form-data", b"hello", 400, "malformed"),
        (MULTIPART, b"hello", 400, "malformed"),
        (MULTIPART, b"", 400, "malformed"),
        (MULTIPART, b"--xx\r\nContent-Disposition: form-data\r\n\r\nx\r\n--xx--\r\n", 400, "malformed"),
        (MULTIPART, parts((b"images", b'; filename="a.png"', PNG))[:-400], 400, "malformed"),
        (MULTIPART, parts(), 422, "invalid"),
        (MULTIPART, parts((b"images", b"", b"hello")), 422, "invalid"),
        (MULTIPART, parts((b"threshold", b"", b"0.5")), 422, "invalid"),
        (MULTIPART, parts((b"file", b'; filename="a.png"', PNG)), 422, "invalid"),
        ("application/json", b"", 400, "malformed"),
        ("application/json", b'{"images": [', 400, "malformed"),
        ("application/json", b"\xff\xfe", 400, "malformed"),
        ("application/json", b"[]", 422, "invalid"),
        ("application/json", b"{}", 422, "invalid"),
        ("application/json", b'{"images": []}', 422, "invalid"),
        ("application/json", b'{"images": "x"}', 422, "invalid"),
        ("application/json", b'{"images": [1]}', 422, "invalid"),
        ("application/json", b'{"images": ["aGk="], "url": "http://x"}', 422, "invalid"),
        ("application/json", b'{"images": ["not base64!"]}', 422, "invalid"),
        ("application/json", '{"images": ["größer"]}'.encode(), 422, "invalid"),
        ("application/json", b'{"images": ["abc"]}', 422, "invalid"),
        ("application/json", b'{"images": ["data:image/png,hello"]}', 422, "invalid"),
        ("application/json", b'{"images": ["/etc/passwd"]}', 422, "invalid"),
        ("application/json", b'{"images": ["aGVsbG8="]}', 422, "not_an_image"),
        ("application/json", b"[" * 3_000, 400, "malformed"),
        ("application/json", b"[" * 100_000, 413, "too_many_pictures"),
    ],
)
async def test_bodies_that_are_wrong(
    client: httpx.AsyncClient, kind: str, body: bytes, status: int, error: str
) -> None:
    for path in ("/v1/detect", "/v1/explain"):
        answer = await client.post(path, content=body, headers={"content-type": kind})
        assert (answer.status_code, kind_of(answer)) == (status, error), answer.text


async def test_a_file_name_is_only_ever_text(client: httpx.AsyncClient) -> None:
    name = '<b>"../../etc/passwd\\\u202e' + "x" * 500
    answer = await client.post(DETECT, files=[("images", (name, PNG, "image/png"))])
    broken = await client.post(DETECT, files=[("images", (name, b"hello", "image/png"))])
    assert answer.json()["results"][0]["file_name"].startswith("<b>%22../../etc/passwd")
    assert len(answer.json()["results"][0]["file_name"]) == 200
    assert answer.headers["content-type"] == broken.headers["content-type"] == "application/json"
    assert len(broken.json()["error"]["message"]) < 500


# ---------------------------------------------------------------------- limits


async def test_too_many_pictures(shared: Detector) -> None:
    async with running(shared, ServeSettings(max_pictures=3)) as (_, client):
        answer = await client.post(DETECT, files=form(*[PNG] * 4))
        text = base64.b64encode(PNG).decode()
        as_json = await client.post(DETECT, json={"images": [text] * 4})
        crowd = await client.post(DETECT, files=form(*[b""] * 1001))
        fits = await client.post(DETECT, files=form(*[PNG] * 3))
    assert [kind_of(answer), kind_of(as_json)] == ["too_many_pictures"] * 2
    assert answer.status_code == as_json.status_code == 413
    assert crowd.status_code == 400
    assert fits.status_code == 200


class Sent:
    """A body in pieces, without a length; counts how many pieces were taken.

    The last piece comes when `rest` is set.
    """

    def __init__(self, piece: bytes, number: int, rest: asyncio.Event | None = None) -> None:
        self.piece, self.number, self.rest, self.taken = piece, number, rest, 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for index in range(self.number):
            await asyncio.sleep(0)
            if self.rest is not None and index == self.number - 1:
                await self.rest.wait()
            self.taken += 1
            yield self.piece


async def test_the_size_of_a_body_is_limited_while_it_arrives(
    shared: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate_module, "THROWN_AWAY_BYTES", 50_000)
    headers = {"content-type": "application/json"}
    async with running(shared, ServeSettings(max_body_bytes=10_000)) as (server, client):
        announced = await client.post(DETECT, content=b"x" * 10_001, headers=headers)
        assert (announced.status_code, kind_of(announced)) == (413, "body_too_large")
        endless = Sent(b"x" * 1000, 10_000_000)
        streamed = await client.post(DETECT, content=endless, headers=headers)
        assert (streamed.status_code, kind_of(streamed)) == (413, "body_too_large")
        assert endless.taken < 80
        assert server.held == 0
        lied = await client.post(
            DETECT, content=Sent(b"x" * 1000, 20), headers={**headers, "content-length": "1000"}
        )
        assert lied.status_code == 413
        at_the_limit = await client.post(DETECT, content=b"x" * 10_000, headers=headers)
        assert kind_of(at_the_limit) == "malformed"


async def test_the_bytes_of_all_bodies_are_limited(shared: Detector) -> None:
    settings = ServeSettings(max_body_bytes=10_000, max_bytes_in_flight=15_000)
    headers = {"content-type": "application/json"}
    async with running(shared, settings) as (server, client):
        rest = asyncio.Event()
        slow = Sent(b"x" * 1000, 10, rest)
        first = asyncio.create_task(client.post(DETECT, content=slow, headers=headers))
        await until(lambda: server.held == 9000)
        second = await client.post(DETECT, content=b"x" * 9000, headers=headers)
        assert (second.status_code, kind_of(second)) == (429, "busy")
        assert int(second.headers["retry-after"]) >= 1
        rest.set()
        assert kind_of(await first) == "malformed"
        assert server.held == 0


async def test_a_body_that_does_not_come(shared: Detector) -> None:
    async with running(shared, ServeSettings(timeout_s=0.3)) as (server, client):
        answer = await client.post(DETECT, content=Sent(b"x", 100, rest=asyncio.Event()))
        assert (answer.status_code, kind_of(answer)) == (408, "slow_body")
        assert server.held == 0


async def test_a_full_queue_refuses_and_recovers() -> None:
    detector = tiny_detector()
    watched = watch(detector)
    async with running(detector, ServeSettings(queue_size=3, max_pictures=3)) as (server, client):
        watched.go.clear()
        accepted = [asyncio.create_task(client.post(DETECT, files=form(PNG))) for _ in range(3)]
        await until(lambda: server.engine.accepted == 3)
        for path in ("/v1/detect", "/v1/explain"):
            refused = await client.post(path, files=form(PNG))
            assert (refused.status_code, kind_of(refused)) == (429, "busy")
            assert 1 <= int(refused.headers["retry-after"]) <= 60
        metrics = (await client.get("/metrics")).text
        assert "deformable_detr_queue_pictures 3.0" in metrics
        assert "deformable_detr_queue_limit_pictures 3.0" in metrics
        assert 'deformable_detr_errors_total{kind="busy"} 2.0' in metrics
        watched.go.set()
        assert [answer.status_code for answer in await asyncio.gather(*accepted)] == [200] * 3
        assert server.engine.accepted == 0
        assert (await client.post(DETECT, files=form(*[PNG] * 3))).status_code == 200


async def test_an_answer_that_takes_too_long() -> None:
    detector = tiny_detector()
    watched = watch(detector)
    settings = ServeSettings(timeout_s=2, queue_size=4, max_pictures=4, max_batch=1)
    async with running(detector, settings) as (server, client):
        watched.go.clear()
        begun = watched.begun
        answers = await asyncio.gather(*[client.post(DETECT, files=form(PNG, PNG)) for _ in range(2)])
        assert {(answer.status_code, kind_of(answer)) for answer in answers} == {(504, "timeout")}
        assert (await client.get("/healthz")).status_code == 200
        assert server.engine.accepted == 0  # their places are free
        watched.batches.clear()
        server.settings = replace(settings, timeout_s=100)  # the rest of the test is not about time
        under_way = watched.begun - begun
        assert under_way <= 1
        watched.go.set()
        assert (await client.post(DETECT, files=form(PNG))).status_code == 200
        # those that nobody waits for are not computed
        assert len(watched.batches) == under_way + 1


async def test_nothing_is_computed_for_those_who_have_gone() -> None:
    detector = tiny_detector()
    watched = watch(detector)
    async with running(detector, ServeSettings(max_batch=1)) as (server, client):
        watched.go.clear()
        watched.batches.clear()
        begun = watched.begun
        first = asyncio.create_task(client.post(DETECT, files=form(PNG)))
        await until(lambda: watched.begun == begun + 1)  # else the second could overtake it
        request = client.build_request("POST", "http://localhost/v1/detect", files=form(PNG))
        body = b"".join([piece async for piece in request.stream])  # type: ignore[union-attr]
        messages: list[dict[str, Any]] = [{"type": "http.request", "body": body}]
        gone = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(_: Any) -> None:
            raise AssertionError("nobody is there")

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/detect",
            "query_string": b"",
            "headers": [(name.lower(), value) for name, value in request.headers.raw],
            "root_path": "",
        }
        second = asyncio.create_task(server(scope, receive, send))  # type: ignore[arg-type]
        await until(lambda: server.engine.accepted == 2)
        gone.set()
        await second
        assert server.engine.accepted == 1
        watched.go.set()
        assert (await first).status_code == 200
        assert len(watched.batches) == 1
        metrics = (await client.get("/metrics")).text
    assert 'requests_total{route="/v1/detect",status="client gone"} 1.0' in metrics


# ---------------------------------------------------------------------- who may


async def test_the_token(shared: Detector) -> None:
    async with running(shared, ServeSettings(token="s3cret-token")) as (_, client):
        for headers in (
            {},
            {"authorization": "Bearer wrong-token"},
            {"authorization": "Bearer s3cret-toke"},
            {"authorization": "Basic s3cret-token"},
            {"authorization": "s3cret-token"},
            {"authorization": "Bearer \xff\xfe".encode("latin-1")},
        ):
            for path in ("/v1/detect", "/v1/explain", "/v1/model", "/metrics"):
                method = "POST" if path in ("/v1/detect", "/v1/explain") else "GET"
                answer = await client.request(method, path, headers=headers)  # type: ignore[arg-type]
                assert (answer.status_code, kind_of(answer)) == (401, "unauthorized")
                assert answer.headers["www-authenticate"] == "Bearer"
                assert "s3cret" not in answer.text
        for path in ("/", "/docs", "/openapi.json", "/healthz", "/readyz", "/static/app.js"):
            assert (await client.get(path)).status_code == 200
        right = {"authorization": "bearer s3cret-token"}
        assert (await client.post(DETECT, files=form(PNG), headers=right)).status_code == 200
        assert (await client.get("/metrics", headers=right)).status_code == 200


async def test_another_sites_page_may_not(client: httpx.AsyncClient) -> None:
    answer = await client.post(DETECT, files=form(PNG), headers={"sec-fetch-site": "cross-site"})
    assert (answer.status_code, kind_of(answer)) == (403, "forbidden")
    own = await client.post(DETECT, files=form(PNG), headers={"sec-fetch-site": "same-origin"})
    assert own.status_code == 200
    asked = await client.options("/v1/detect", headers={"origin": "http://evil.example"})
    assert not [name for name in (*own.headers, *asked.headers) if name.startswith("access-control")]


async def test_every_answer_has_the_security_headers(client: httpx.AsyncClient) -> None:
    answers = [
        await client.get(path)
        for path in ("/", "/docs", "/static/app.js", "/v1/model", "/nothing", "/v1/detect", "/metrics")
    ]
    answers += [await client.post(DETECT), await client.post(DETECT, files=form(PNG))]
    for answer in answers:
        for name, value in SECURITY_HEADERS.items():
            if name != "Cache-Control":
                assert answer.headers[name] == value
        assert "server" not in answer.headers


# ---------------------------------------------------------------------- life


async def test_ready_only_when_warm_and_not_stopping() -> None:
    detector = tiny_detector()
    watched = watch(detector)
    watched.go.clear()
    async with running(detector, wait=False) as (server, client):
        for request in (client.get("/readyz"), client.post(DETECT, files=form(PNG))):
            answer = await request
            assert (answer.status_code, kind_of(answer)) == (503, "starting")
            assert answer.headers["retry-after"]
        assert (await client.get("/healthz")).json() == {"status": "ok"}
        watched.go.set()
        await until(lambda: server.engine.state == "ready")
        assert (await client.get("/readyz")).json() == {"status": "ready"}
        watched.go.clear()
        accepted = asyncio.create_task(client.post(DETECT, files=form(PNG)))
        await until(lambda: server.engine.accepted == 1)
        server.engine.stop()
        for request in (client.get("/readyz"), client.post(DETECT, files=form(PNG))):
            answer = await request
            assert (answer.status_code, kind_of(answer)) == (503, "stopping")
        assert (await client.get("/healthz")).status_code == 200
        watched.go.set()
        assert (await accepted).status_code == 200  # what was accepted is finished


async def test_a_model_that_cannot_be_warmed_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    detector = tiny_detector()

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(detector, "predict", fail)
    async with running(detector, wait=False) as (server, client):
        await until(lambda: server.engine.state == "failed")
        answer = await client.get("/readyz")
    assert (answer.status_code, kind_of(answer)) == (503, "failed")
    assert "no memory" in caplog.text


async def test_a_bug_is_answered_and_the_server_continues(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    detector = tiny_detector()
    async with running(detector) as (server, client):
        with monkeypatch.context() as patch:

            def fail(*_: Any, **__: Any) -> None:
                raise RuntimeError("secret detail")

            patch.setattr(detector, "detect", fail)
            answer = await client.post(DETECT, files=form(PNG))
        assert (answer.status_code, kind_of(answer)) == (500, "internal")
        assert "secret" not in answer.text
        assert "secret detail" in caplog.text
        assert (await client.post(DETECT, files=form(PNG))).status_code == 200
        assert server.engine.accepted == 0
        assert 'errors_total{kind="internal"} 1.0' in (await client.get("/metrics")).text
    caplog.clear()


async def test_metrics(shared: Detector) -> None:
    async with running(shared, ServeSettings(name="tiny")) as (_, client):
        await client.post(DETECT, files=form(PNG, PNG))
        await client.post(DETECT, files=form(b"hello"))
        for i in range(50):
            await client.get(f"/nothing/{i}")
        answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    text = answer.text
    for line in (
        'deformable_detr_requests_total{route="/v1/detect",status="200"} 1.0',
        'deformable_detr_requests_total{route="/v1/detect",status="422"} 1.0',
        'deformable_detr_requests_total{route="other",status="404"} 50.0',
        'deformable_detr_errors_total{kind="not_an_image"} 1.0',
        "deformable_detr_pictures_total 2.0",
        "deformable_detr_queue_pictures 0.0",
        "deformable_detr_held_bytes 0.0",
        "deformable_detr_ready 1.0",
        'deformable_detr_request_seconds_count{route="/v1/detect"} 2.0',
        'deformable_detr_stage_seconds_count{stage="decode"} 2.0',
        'deformable_detr_stage_seconds_count{stage="wait"} 2.0',
    ):
        assert line in text, line
    assert re.search(r'deformable_detr_info\{model="tiny",version="[\d.]+"\} 1.0', text)
    assert "/nothing" not in text


# ---------------------------------------------------------------------- pages, OpenAPI


async def test_the_pages_load_nothing_from_elsewhere(client: httpx.AsyncClient) -> None:
    for page in ("/", "/docs"):
        answer = await client.get(page)
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        used = re.findall(r'(?:src|href)="(static/[^"]+)"', answer.text)
        assert used
        for part in used:
            text = (await client.get(f"/{part}")).text
            assert not re.search(
                r"https?:(?!//;)//\w|@import|url\(|innerHTML|insertAdjacentHTML|eval\(", text
            )
        assert not re.search(r"https?://|<script>|<style|\son\w+=|\sstyle=", answer.text)
    for wrong in ("/static/nothing.js", "/static/..%2f..%2fetc%2fpasswd", "/static/", "/static/settings.py"):
        assert (await client.get(wrong)).status_code == 404


def test_the_page_calls_every_control_by_a_name() -> None:
    text = (files("deformable_detr.serve") / "static" / "index.html").read_text(encoding="utf-8")
    unlabelled = re.sub(r"<label.*?</label>", "", text, flags=re.DOTALL)
    assert "<input" not in unlabelled
    assert all(re.sub(r"<[^>]+>", "", button).strip() for button in re.findall(r"<button.*?</button>", text))
    for needed in ('role="alert"', 'aria-live="polite"', 'lang="en"', 'name="viewport"'):
        assert needed in text


async def test_openapi_describes_what_is_there(client: httpx.AsyncClient) -> None:
    api = (await client.get("/openapi.json")).json()
    model = (await client.get("/v1/model")).json()
    assert set(api["paths"]) == {
        "/v1/detect",
        "/v1/explain",
        "/v1/model",
        "/healthz",
        "/readyz",
        "/metrics",
    }
    body = api["paths"]["/v1/detect"]["post"]["requestBody"]["content"]
    assert set(body) == {"multipart/form-data", "application/json"}
    for status in ("400", "401", "403", "408", "413", "415", "422", "429", "500", "503", "504"):
        schema = api["paths"]["/v1/detect"]["post"]["responses"][status]["content"]["application/json"]
        assert schema["schema"]["$ref"].endswith("/ErrorAnswer")
    assert "501" in api["paths"]["/v1/explain"]["post"]["responses"]
    assert model["classes"] == list(NAMES)
    assert json.dumps(model)


async def test_below_a_prefix(shared: Detector) -> None:
    async with running(shared) as (server, _):
        transport = httpx.ASGITransport(server, root_path="/detr")
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            # as uvicorn gives it: the path with the prefix
            assert (await client.get("/detr/")).status_code == 200
            assert (await client.get("/detr/static/app.js")).status_code == 200
            assert (await client.post("/detr" + DETECT, files=form(PNG))).status_code == 200
            assert (await client.get("/detr/openapi.json")).json()["servers"] == [{"url": "/detr"}]
            text = (await client.get("/detr/metrics")).text
    assert 'route="/v1/detect",status="200"' in text


@pytest.mark.parametrize(
    ("path", "prefix", "route"),
    [
        ("/api/v1/model", "/api", "/v1/model"),
        ("/api/v1/model", "/api/", "/v1/model"),
        ("/api", "/api", ""),
        ("/apiary", "/api", "/apiary"),
        ("/v1/model", "", "/v1/model"),
    ],
)
def test_a_prefix_ends_at_a_slash(path: str, prefix: str, route: str) -> None:
    assert route_of({"path": path, "root_path": prefix}) == route


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

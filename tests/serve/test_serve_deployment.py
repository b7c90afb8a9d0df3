"""The files of examples/serving fit the server, and replicas behind one address lose no request."""

from __future__ import annotations

import asyncio
import json
import re
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from deformable_detr.cli.main import parser_of
from deformable_detr.serve import ServeSettings
from deformable_detr.serve.gate import ROUTES
from deformable_detr.serve.metrics import Metrics
from deformable_detr.serve.refusals import Kind
from tests.support.serving import form, picture, png, running, tiny_detector

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "serving"
PNG = png(picture())


def text_of(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def compose() -> dict[str, Any]:
    services: dict[str, Any] = yaml.safe_load(text_of("compose.yaml"))["services"]
    return services


def alerts() -> dict[str, str]:
    (group,) = yaml.safe_load(text_of("alerts.yaml"))["groups"]
    return {rule["alert"]: rule["expr"] for rule in group["rules"]}


@pytest.mark.parametrize("name", alerts())
def test_alerts_ask_for_metrics_and_labels_that_the_server_has(name: str) -> None:
    metrics = Metrics("cells", 3)
    metrics.requests.labels("/v1/detect", "200").inc()
    metrics.errors.labels("busy").inc()
    metrics.request_seconds.labels("/v1/detect").observe(1)
    samples = {sample.name: sample for family in metrics.registry.collect() for sample in family.samples}
    expression = alerts()[name]
    asked = re.findall(r"(deformable_detr_\w+|\bup\b)(?:\{([^}]*)\})?", expression)
    assert asked
    for metric, labels in asked:
        for label, operator, value in re.findall(r'(\w+)(=~?)"([^"]*)"', labels):
            if metric == "up":
                assert (label, value) == (
                    "job",
                    yaml.safe_load(text_of("prometheus.yaml"))["scrape_configs"][0]["job_name"],
                )
                continue
            assert label in samples[metric].labels
            allowed = {"kind": {kind.value for kind in Kind}, "route": {*ROUTES, "/v2 infer"}}[label]
            assert set(value.split("|") if operator == "=~" else [value]) <= allowed
        assert metric == "up" or metric in samples


def test_the_containers_run_commands_that_exist() -> None:
    image = json.loads(re.findall(r"^CMD (.*)$", text_of("Dockerfile"), re.MULTILINE)[0])
    for command in (image, compose()["detr"]["command"]):
        program, name, *options = command
        assert (program, name) == ("deformable-detr", "serve")
        arguments = parser_of("serve").read(options)
        assert (arguments.model, arguments.host, arguments.port) == ("/model", "0.0.0.0", 8000)


def test_the_limits_of_the_balancer_fit_those_of_the_server() -> None:
    balancer, settings, detr = text_of("nginx.conf"), ServeSettings(), compose()["detr"]

    def number(pattern: str, text: str = balancer) -> int:
        return int(re.findall(pattern, text)[0])

    assert number(r"client_max_body_size (\d+)m;") * 1024**2 == settings.max_body_bytes
    assert number(r"proxy_read_timeout (\d+)s;") > settings.timeout_s
    assert number(r"(\d+)s", detr["stop_grace_period"]) > settings.timeout_s + 5
    hosts = parser_of("serve").read(detr["command"][2:]).allowed_hosts
    assert re.findall(r"proxy_set_header Host (\w+);", balancer) == hosts == ["detr"]
    assert re.findall(r"server (\w+:\d+) resolve", balancer) == ["detr:8000"]
    assert "/readyz" in text_of("Dockerfile")


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_two_replicas_lose_no_request_while_one_stops() -> None:
    detector = tiny_detector()
    async with running(detector) as (first, one), running(detector) as (_, other):
        replicas = cycle([one, other])
        statuses: list[int] = []

        async def balanced() -> httpx.Response:
            """What nginx.conf states: another replica is tried after a 503 or 429, up to three in all."""
            for _ in range(3):
                answer = await next(replicas).post("/v1/detect?threshold=0.1", files=form(PNG))
                statuses.append(answer.status_code)
                if answer.status_code not in (503, 429):
                    break
            return answer

        answers = []
        for number in range(12):
            if number == 4:
                pending = asyncio.create_task(balanced())
                await asyncio.sleep(0)
                first.engine.stop()
                answers.append(await pending)
            answers.append(await balanced())
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.text for answer in answers}) == 1
        assert 503 in statuses
        assert (await one.get("/readyz")).status_code == 503
        assert (await other.get("/readyz")).status_code == 200

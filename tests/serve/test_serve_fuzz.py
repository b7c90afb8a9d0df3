"""schemathesis against the server's own OpenAPI: no 500, and no answer that the OpenAPI does not describe."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from deformable_detr.serve import ServeSettings, create_app
from deformable_detr.serve.server import ServerProcess
from tests.support.serving import in_a_thread, picture, png, tiny_detector

pytestmark = pytest.mark.slow

EXAMPLES = 25
PICTURE = base64.b64encode(png(picture())).decode()
bounded = settings(
    max_examples=EXAMPLES,
    derandomize=True,  # a machine's run is the next machine's run
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    process = ServerProcess(create_app(tiny_detector(), ServeSettings(max_pictures=4)), "", False)
    with in_a_thread(process) as (address, _):
        while httpx.get(f"{address}/readyz", timeout=300).status_code != 200:
            time.sleep(0.1)
        yield address
        metrics = httpx.get(f"{address}/metrics", timeout=300).text
        assert 'kind="internal"' not in metrics
        assert 'route="/v1/detect",status="200"' in metrics


@pytest.fixture(scope="module")
def api(address: str) -> Any:
    return schemathesis.openapi.from_url(f"{address}/openapi.json")


@pytest.mark.parametrize("mode", GenerationMode)
def test_whatever_fits_the_openapi_or_does_not(api: Any, mode: GenerationMode) -> None:
    for operation in operations(api):
        takes_something = bool(list(operation.iter_parameters())) or bool(list(operation.body))
        if mode is GenerationMode.NEGATIVE and not takes_something:
            continue  # nothing that could be wrong

        @bounded
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case: Any) -> None:
            # Almost nothing that fits it is a picture, so what fits may be refused.
            case.call_and_validate(excluded_checks=[positive_data_acceptance])

        check()


def test_parameters_with_a_picture(api: Any) -> None:
    for operation in operations(api.include(path_regex="^/v1/(detect|explain)$")):

        @bounded
        @given(case=operation.as_strategy())
        def check(case: Any) -> None:
            case.body, case.media_type, case.headers = {"images": [PICTURE]}, "application/json", {}
            case.call_and_validate(excluded_checks=[positive_data_acceptance])

        check()


def operations(api: Any) -> list[Any]:
    found = [result.ok() for result in api.get_all_operations()]
    assert len(found) >= 2
    return found

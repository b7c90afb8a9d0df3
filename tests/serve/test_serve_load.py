"""Clients at once, a server in a process of its own, loopback: within the limits nothing fails. Untimed."""

from __future__ import annotations

import asyncio
import importlib.util
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import httpx
import pytest

from tests.support.serving import picture, png, tiny_detector

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).resolve().parents[2] / "experiments" / "benchmark" / "serve.py"
REQUESTS = 192


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_serve", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmark_serve"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    model = tiny_detector().save(tmp_path_factory.mktemp("model") / "tiny")
    command = [
        sys.executable,
        "-m",
        "deformable_detr",
        "serve",
        str(model),
        "--port",
        "0",
        "--timeout",
        "300",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split(" at ")[1].split()[0]
        while httpx.get(f"{address}/readyz", timeout=300).status_code != 200:
            time.sleep(0.1)
        yield address
        process.send_signal(signal.SIGTERM)
        assert process.wait(300) == 0


@pytest.mark.parametrize("clients", [1, 8, 64])
def test_nothing_fails_within_the_limits(address: str, benchmark: ModuleType, clients: int) -> None:
    pictures = [png(picture(seed, [(64, 80), (80, 64), (100, 100)][seed % 3])) for seed in range(6)]
    result = asyncio.run(benchmark.load(address, pictures, clients, REQUESTS))
    print(f"\n{benchmark.HEADER}\n{result.row()}")
    assert result.failures == ()
    assert len(result.milliseconds) == REQUESTS
    assert 0 < result.percentile(50) <= result.percentile(95)

"""docs/serve.md: its curl and Python examples work, and its tables say what the server does."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

from deformable_detr.detections import ClassTable
from deformable_detr.inference.detector import Detector
from deformable_detr.inference.loading import new_checkpoint
from deformable_detr.serve import ServeSettings, create_app
from deformable_detr.serve.gate import ROUTES
from deformable_detr.serve.metrics import Metrics
from deformable_detr.serve.refusals import Kind
from deformable_detr.serve.server import ServerProcess
from tests.support.serving import in_a_thread, picture
from tests.support.small_models import randomise
from tests.support.tiny import tiny_config

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "serve.md").read_text(encoding="utf-8")
CURLS = [block for block in re.findall(r"^```bash\n(.*?)^```", TEXT, re.M | re.S) if "curl" in block]
CLIENT = next(block for block in re.findall(r"^```python\n(.*?)^```", TEXT, re.M | re.S) if "httpx" in block)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    config = tiny_config()
    classes = ClassTable.from_names(("RBC", "WBC", "Platelets"))
    checkpoint = new_checkpoint(config.model, classes, config.data, config.recipe, None)
    randomise(checkpoint.model)
    process = ServerProcess(create_app(Detector.of(checkpoint, "cpu"), ServeSettings(name="bccd")), "", False)
    with in_a_thread(process) as (address, _):
        while httpx.get(f"{address}/readyz", timeout=300).status_code != 200:
            time.sleep(0.05)
        yield address


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    Image.fromarray(picture(1)).save(tmp_path / "cells.jpg")
    Image.fromarray(picture(2)).save(tmp_path / "more.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not here")
@pytest.mark.parametrize("number", range(len(CURLS)))
def test_the_curl_examples(address: str, folder: Path, number: int) -> None:
    command = CURLS[number].replace("http://127.0.0.1:8000", address)
    done = subprocess.run(["bash", "-ec", command], capture_output=True, text=True, check=True, timeout=300)
    answer = json.loads(done.stdout or (folder / "explanation.json").read_text())
    assert "error" not in answer
    assert answer.get("results") or answer["decoder"]


def test_the_python_example(address: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(CLIENT.replace("http://127.0.0.1:8000", address), {})
    assert re.search(r"^(RBC|WBC|Platelets) 0\.\d+ \[", capsys.readouterr().out, re.M)


def test_the_tables() -> None:
    assert len(CURLS) >= 4
    defaults = dict(re.findall(r"^\| `--([\w-]+)` \| ([\d.]+) \|", TEXT, re.M))
    settings = ServeSettings()
    assert {name: float(value) for name, value in defaults.items()} == {
        "max-batch": settings.max_batch,
        "batch-wait-ms": settings.batch_wait_ms,
        "queue-size": settings.queue_size,
        "max-pictures": settings.max_pictures,
        "max-body-mb": settings.max_body_bytes / 1024**2,
        "max-pixels": settings.max_pixels,
        "timeout": settings.timeout_s,
    }
    kinds = dict(re.findall(r"^\| (\d{3}) \| ((?:`\w+` ?)+)\|", TEXT, re.M))
    told = {kind: int(status) for status, names in kinds.items() for kind in re.findall(r"`(\w+)`", names)}
    assert told == {kind.value: kind.status for kind in Kind}
    for route in ROUTES:
        assert route == "/" or f"{route}`" in TEXT
    for family in Metrics("x", 1).registry.collect():
        assert family.name.removeprefix("deformable_detr") in TEXT

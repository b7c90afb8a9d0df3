"""The report in a real browser: it fits a phone, its table sorts, and the console stays empty (a breach of
the content policy would be there)."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from deformable_detr.data.formats import read_split
from deformable_detr.evaluation import collect_detections
from deformable_detr.inference.detector import Detector, new_checkpoint
from deformable_detr.report import report_text
from deformable_detr.structures import ClassTable
from tests.support.small_models import randomise
from tests.support.tiny import tiny_config

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not here (apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def page_file(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    part = read_split(tiny_data, "val")
    config = tiny_config()
    table = ClassTable.from_names(tuple(str(name) for name in part.classes.names))
    checkpoint = new_checkpoint(config.model, table, config.data, config.recipe, None)
    randomise(checkpoint.model)
    detector = Detector.of(checkpoint, "cpu")
    rows = collect_detections(detector, part, progress=False)
    file = tmp_path_factory.mktemp("page") / 'a "page" & more.html'
    text = report_text(detector, rows, part, part, model="runs/a", data=str(tiny_data))
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (1200, "dark"), (360, "light")])
def test_it_fits_and_sorts(page_file: Path, width: int, scheme: str, tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-quic"]
        )
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.goto(page_file.as_uri())
        page.wait_for_selector("body[data-ready]")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert all(url.startswith(("file:", "data:")) for url in requests)
        broken = "[...document.images].filter(image => !image.naturalWidth).length"
        assert page.evaluate(broken) == 0

        ink, paper = page.evaluate(
            "['color', 'backgroundColor'].map(name => getComputedStyle(document.body)[name])"
        )
        luminance = [np.mean([int(v) for v in colour[4:-1].split(",")]) for colour in (ink, paper)]
        assert (luminance[0] > luminance[1]) == (scheme == "dark")

        objects = "[...document.querySelectorAll('.numbers tbody tr')].map(row => +row.cells[1].textContent)"
        head = page.get_by_role("button", name="objects", exact=True).first
        head.click()
        assert page.evaluate(objects) == sorted(page.evaluate(objects), reverse=True)
        head.press("Enter")
        assert page.evaluate(objects) == sorted(page.evaluate(objects))
        assert said == []
        page.screenshot(path=tmp_path / "report.png", full_page=True)
        assert (tmp_path / "report.png").stat().st_size > 20_000
        browser.close()

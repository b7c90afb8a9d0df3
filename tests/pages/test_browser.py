"""The pages in a real browser: they fit a phone, follow the colour scheme, load nothing, and work by hand.

A breach of the content policy or a mistake in a script would be in the console.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from deformable_detr.config import RunConfig
from deformable_detr.data.formats import read_split
from deformable_detr.detections import ClassTable
from deformable_detr.evaluation import collect_detections
from deformable_detr.explain import page as explain
from deformable_detr.inference.detector import Detector
from deformable_detr.inference.loading import new_checkpoint
from deformable_detr.inspection import inspect, inspection_page
from deformable_detr.report import report_text
from tests.support.small_models import randomise
from tests.support.tiny import as_detr, changed_data, tiny_config

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
EVIL = '</script><img src=x onerror="alert(1)">&amp;{{data}}'

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not here (apt-get install chromium)"),
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="playwright is not installed"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


def subject(config: RunConfig, names: tuple[str, ...]) -> Detector:
    checkpoint = new_checkpoint(config.model, ClassTable.from_names(names), config.data, config.recipe, None)
    randomise(checkpoint.model)
    return Detector.of(checkpoint, "cpu")


def explained(config: RunConfig) -> str:
    picture = np.random.default_rng(3).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    return explain(subject(config, (EVIL, "größer")), picture, 0.05, title=EVIL)[0]


@pytest.fixture(scope="module")
def pages(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of each kind; the data have a class named EVIL, and a box that is partly outside its picture."""

    def change(content: dict[str, list[dict[str, object]]]) -> None:
        content["categories"][0]["name"] = EVIL
        content["annotations"][0]["bbox"] = [10, 10, 9999, 20]

    folder = tmp_path_factory.mktemp("pages")
    data = changed_data(tiny_data, folder / "a <b>", change)
    part = read_split(data, "val")
    detector = subject(tiny_config(), tuple(str(name) for name in part.classes.names))
    rows = collect_detections(detector, part, progress=False)
    texts = {
        "report": report_text(detector, rows, part, part, model="runs/a", data=str(data)),
        "inspection": inspection_page(inspect(data)),
        "points": explained(tiny_config()),
        "cells": explained(as_detr(tiny_config())),
    }
    files = {name: folder / f'a "{name}" & more.html' for name in texts}
    for name, text in texts.items():
        files[name].write_text(text, encoding="utf-8")
    return files


@contextmanager
def opened(browser: Browser, file: Path, width: int = 1200, scheme: str = "light") -> Iterator[Page]:
    """The page, once its script has run. Nothing may be fetched, and the console stays empty."""
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    messages: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("dialog", lambda dialog: messages.append(dialog.message))
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(file.as_uri())
    page.wait_for_selector("body[data-ready]")
    yield page
    assert all(url.startswith(("file:", "data:")) for url in requests)
    assert messages == []
    page.close()


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (1200, "dark"), (360, "light")])
@pytest.mark.parametrize("kind", ["report", "inspection", "points", "cells"])
def test_it_fits_and_follows_the_scheme(
    browser: Browser, pages: dict[str, Path], kind: str, width: int, scheme: str, tmp_path: Path
) -> None:
    with opened(browser, pages[kind], width, scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("[...document.images].filter(image => !image.naturalWidth).length") == 0
        colours = page.evaluate(
            "['color', 'backgroundColor'].map(name => getComputedStyle(document.body)[name])"
        )
        ink, paper = (np.mean([int(value) for value in colour[4:-1].split(",")]) for colour in colours)
        assert (ink > paper) == (scheme == "dark")
        page.screenshot(path=tmp_path / "page.png", full_page=True)
        assert (tmp_path / "page.png").stat().st_size > 10_000


def test_a_table_of_the_report_sorts(browser: Browser, pages: dict[str, Path]) -> None:
    with opened(browser, pages["report"]) as page:
        objects = "[...document.querySelectorAll('.numbers tbody tr')].map(row => +row.cells[1].textContent)"
        head = page.get_by_role("button", name="objects", exact=True).first
        head.click()
        assert page.evaluate(objects) == sorted(page.evaluate(objects), reverse=True)
        head.press("Enter")
        assert page.evaluate(objects) == sorted(page.evaluate(objects))


def test_a_picture_is_enlarged_and_boxes_are_hidden_by_keyboard(
    browser: Browser, pages: dict[str, Path]
) -> None:
    with opened(browser, pages["inspection"]) as page:
        page.locator("figure button").first.focus()
        page.keyboard.press("Enter")
        assert page.locator("dialog[open] svg").count() == 1
        page.keyboard.press("Escape")
        assert page.locator("dialog[open]").count() == 0
        visible = page.locator("rect:not(.suspect):visible")
        assert visible.count() > 0
        page.locator("#boxes").focus()
        page.keyboard.press("Space")
        assert visible.count() == 0
        assert page.locator("rect.suspect:visible").count() > 0


@pytest.mark.parametrize(("kind", "points", "of_a_head"), [("points", 4 * 3 * 2, 3 * 2), ("cells", 6, 6)])
def test_an_explanation_is_explored(
    browser: Browser, pages: dict[str, Path], kind: str, points: int, of_a_head: int
) -> None:
    with opened(browser, pages[kind]) as page:

        def status() -> str:
            return page.locator("#status").inner_text()

        def slide(name: str, value: int) -> None:
            page.locator(f"#{name}").evaluate(
                "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }",
                value,
            )

        first = status()
        assert f"{points} of {points}" in first
        page.locator("#overlay").press("ArrowRight")
        assert status() != first
        slide("layer", 1)
        assert "layer 1's weight" in status()
        slide("head", 2)
        assert f"{of_a_head} of {points}" in status()
        slide("weight", 100)
        shown = re.search(r"(\d+) of", status())
        assert shown is not None
        assert int(shown[1]) <= of_a_head
        slide("weight", 0)
        slide("head", 0)
        page.locator("input[value=encoder]").click()
        size = page.locator("#overlay").bounding_box()
        assert size is not None
        page.locator("#overlay").click(position={"x": 0.1 * size["width"], "y": 0.9 * size["height"]})
        place = status()
        assert place.startswith("The token of level 1 at")
        for _ in range(20):
            page.locator("#overlay").press("ArrowUp")
        assert status() != place
        colours = "pen.getImageData(0, 0, canvas.width, canvas.height).data"
        assert page.evaluate(f"{colours}.some((value, i) => i % 4 < 3 && value > 40)")
        assert page.locator("#detections button").count() == page.evaluate("data.detections.length")

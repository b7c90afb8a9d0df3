"""The page in a real browser: upload, slider, hover, keys, touch, messages. Screenshots: build/serve."""

from __future__ import annotations

import importlib.util
import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest

from deformable_detr.checkpoint import Decision
from deformable_detr.inference.detector import Detector
from deformable_detr.serve import ServeSettings, create_app
from deformable_detr.serve.server import ServerProcess
from tests.support.serving import (
    EVIL,
    WatchedBackend,
    in_a_thread,
    picture,
    png,
    tiny_detector,
    wait_until,
    watch,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not here (apt-get install chromium)"),
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="playwright is not installed"),
]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
SHOTS = Path(__file__).resolve().parents[2] / "build" / "serve"
WAIT_MS = 60_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS + CAMERA)
        yield browser
        browser.close()


class Served:
    """A server of a tiny model, its address, and its backend, which can be held up."""

    def __init__(self, address: str, process: ServerProcess, backend: WatchedBackend) -> None:
        self.address, self.process, self.backend = address, process, backend


def served(settings: ServeSettings, detector: Detector | None = None) -> Iterator[Served]:
    detector = detector or tiny_detector()
    backend = watch(detector)
    process = ServerProcess(create_app(detector, settings), "", False)
    with in_a_thread(process) as (address, _):
        wait_until(lambda: process.app.engine.state == "ready")
        yield Served(address, process, backend)
        backend.go.set()


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    yield from served(ServeSettings(name="tiny", queue_size=1, max_pictures=1, max_body_bytes=2_000_000))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "photo.png").write_bytes(png(picture(size=(120, 160))))
    (tmp_path / "text.png").write_bytes(b"hello, I am not a picture")
    (tmp_path / "large.png").write_bytes(b"x" * 2_100_000)
    return tmp_path


def opened(browser: Browser, address: str, path: str = "", **options: Any) -> tuple[Page, list[str]]:
    """The page, and what went wrong in it: script errors, and anything asked of another host."""
    page = browser.new_context(**options).new_page()
    page.set_default_timeout(WAIT_MS)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "console", lambda message: wrong.append(message.text) if "Content Security" in message.text else None
    )
    page.on(
        "request",
        lambda request: (
            None if request.url.startswith((address, "blob:", "data:")) else wrong.append(request.url)
        ),
    )
    page.goto(f"{address}/{path}")
    page.wait_for_selector("body[data-ready=true]")
    return page, wrong


def upload(page: Page, path: Path, threshold: int = 30) -> None:
    page.set_input_files("#file", path)
    page.wait_for_selector("#download:enabled")
    slide(page, "threshold", threshold)


def slide(page: Page, name: str, value: int) -> None:
    page.evaluate(
        """([name, value]) => { const slider = document.getElementById(name); slider.value = value;
           for (const kind of ["input", "change"]) slider.dispatchEvent(new Event(kind)); }""",
        [name, value],
    )


def wait(page: Page, condition: str) -> None:
    """Playwright's own waiting evaluates text in the page, which the page's policy forbids."""
    deadline = time.monotonic() + WAIT_MS / 1000
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(50)


def close(page: Page) -> None:
    page.context.close()


def rows(page: Page) -> int:
    return page.locator("#detections li").count()


def test_upload_slider_hover_classes_and_download(browser: Browser, server: Served, files: Path) -> None:
    page, wrong = opened(browser, server.address, viewport={"width": 1280, "height": 860})
    assert page.title() == "tiny: find objects"
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url.split("?")[0].rsplit("/", 1)[1]))
    upload(page, files / "photo.png", 30)
    many = rows(page)
    slide(page, "threshold", 60)
    few = rows(page)
    assert many > few > 0
    assert page.inner_text("#count") == f"{few} detections above 0.60"
    assert sent.count("detect") == 1  # the slider asks nobody
    assert "explain" not in sent  # nor is anything explained before somebody looks

    page.hover("#detections li:nth-child(1) button")
    page.wait_for_selector("#look:not([hidden])")
    wait(page, "document.getElementById('status').textContent.includes('attention')")
    before = page.inner_text("#status")
    picture_before = page.locator("#overlay").screenshot()
    slide(page, "layer", 1)
    assert "layer 1's" in page.inner_text("#status") != before
    assert page.locator("#overlay").screenshot() != picture_before
    page.hover("#detections li:nth-child(2) button")
    assert sent.count("explain") == 1
    assert page.get_attribute("#detections li:nth-child(2) button", "aria-pressed") == "true"

    # over the picture: the box under the pointer
    page.mouse.move(1, 1)
    frame = page.locator("#overlay").bounding_box()
    assert frame is not None
    x0, y0, x1, y1 = page.evaluate("state.found.detections[0].box_xyxy")
    scale = frame["width"] / 160
    x, y = max(1, min(159, (x0 + x1) / 2)) * scale, max(1, min(119, (y0 + y1) / 2)) * scale
    page.mouse.move(frame["x"] + x, frame["y"] + y)
    assert page.locator("#detections [aria-pressed=true]").count() == 1
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / "desktop.png")

    # a class that is called like markup is text
    assert page.locator("#classes li").count() == page.evaluate(
        "new Set(state.found.detections.map(d => d.label)).size"
    )
    assert page.locator("#classes img, #detections img").count() == 0
    assert EVIL in page.inner_text("#classes")
    slide(page, "threshold", 30)
    shown = rows(page)
    page.uncheck("#classes li:first-child input")
    assert rows(page) < shown

    with page.expect_download() as download:
        page.click("#download")
    saved = json.loads(Path(download.value.path()).read_text())
    assert download.value.suggested_filename == "photo.json"
    assert saved["threshold"] == 0.3
    assert len(saved["detections"]) == rows(page)
    assert wrong == []
    close(page)


def test_the_models_own_thresholds_are_used_until_the_slider_moves(browser: Browser, files: Path) -> None:
    plain = tiny_detector()
    everything = plain.predict(picture(size=(120, 160)), 0.05)
    middle = round(float(np.median(everything.scores)), 3)
    decision = Decision((middle, 0.0, 1.0), ("own",) * 3, "best_f1", "val", 9)
    own = Detector.of(replace(plain.checkpoint, decision=decision), "cpu")
    expected = own.predict(picture(size=(120, 160)))
    assert len(expected) > 0
    with contextmanager(served)(ServeSettings(name="tiny"), own) as server:
        page, wrong = opened(browser, server.address)
        page.set_input_files("#file", files / "photo.png")
        page.wait_for_selector("#download:enabled")
        assert page.is_checked("#own")
        assert "best F1 on val" in page.inner_text("#own-line")
        assert rows(page) == len(expected)
        assert "the thresholds of their classes" in page.inner_text("#count")
        slide(page, "threshold", 100)
        assert not page.is_checked("#own")
        assert rows(page) < len(expected)
        page.check("#own")
        assert rows(page) == len(expected)
        assert wrong == []
        close(page)


def test_without_different_thresholds_there_is_only_the_slider(browser: Browser, server: Served) -> None:
    page, wrong = opened(browser, server.address)
    assert page.is_hidden("#own-line")
    assert page.input_value("#threshold") == "50"
    assert wrong == []
    close(page)


def test_by_keyboard_alone(browser: Browser, server: Served, files: Path) -> None:
    page, wrong = opened(browser, server.address, color_scheme="dark")
    upload(page, files / "photo.png")
    page.focus("#threshold")
    before = page.inner_text("#count")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#count") != before
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('#detections') !== null"):
            break
    else:
        raise AssertionError("no detection can be reached by tab")
    assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    wait(page, "document.getElementById('status').textContent.includes('attention')")
    first = page.inner_text("#status")
    page.keyboard.press("Tab")
    assert page.inner_text("#status") != first
    page.focus("#overlay")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Escape")
    assert page.locator("#detections [aria-pressed=true]").count() == 0
    names = page.evaluate(
        """[...document.querySelectorAll("button, input, canvas")].filter(e => e.offsetParent).map(
             e => (e.labels?.[0]?.textContent || e.textContent || e.getAttribute("aria-label")).trim())"""
    )
    assert all(names)
    assert wrong == []
    close(page)


def test_messages_can_be_read(browser: Browser, server: Served, files: Path) -> None:
    page, wrong = opened(browser, server.address)

    def message_of(path: Path) -> str:
        page.set_input_files("#file", path)
        wait(page, "document.getElementById('message').textContent !== ''")
        return page.inner_text("#message")

    assert "not a picture that can be read" in message_of(files / "text.png")
    assert message_of(files / "large.png") == (
        "This file is too large: the server takes up to 1.9 MB. This one has 2.0 MB."
    )
    assert page.get_attribute("#message", "role") == "alert"
    upload(page, files / "photo.png")
    assert page.inner_text("#message") == ""  # gone with the next picture

    # busy: it says so, counts down and tries again by itself
    server.backend.go.clear()
    other = threading.Thread(
        target=httpx.post,
        args=(f"{server.address}/v1/detect",),
        kwargs={"files": {"images": png(picture())}, "timeout": 300},
    )
    other.start()
    wait_until(lambda: server.process.app.engine.accepted == 1)
    assert message_of(files / "photo.png").startswith("The server is busy. Next try in ")
    server.backend.go.set()
    other.join()
    page.wait_for_selector("#download:enabled")
    assert page.inner_text("#message") == ""

    page.route("**/v1/detect*", lambda route: route.abort())
    assert "cannot be reached" in message_of(files / "photo.png")
    assert wrong == []
    close(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(browser: Browser, server: Served, files: Path, scheme: Any) -> None:
    page, wrong = opened(
        browser,
        server.address,
        viewport={"width": 390, "height": 844},
        has_touch=True,
        is_mobile=True,
        color_scheme=scheme,
    )
    upload(page, files / "photo.png")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.tap("#detections li:nth-child(1) button")
    page.wait_for_selector("#look:not([hidden])")
    assert page.get_attribute("#detections li:nth-child(1) button", "aria-pressed") == "true"
    small = page.evaluate(
        """[...document.querySelectorAll(".button, #detections button")].filter(e => e.offsetParent)
           .map(e => e.getBoundingClientRect().height).filter(height => height < 36)"""
    )
    assert small == []  # nothing too small for a finger
    in_sight = page.locator("#stage").bounding_box()
    assert in_sight is not None
    assert in_sight["y"] + in_sight["height"] > 0
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"phone_{scheme}.png")
    assert wrong == []
    close(page)


def test_dropped_pasted_and_from_the_camera(browser: Browser, server: Served, files: Path) -> None:
    page, wrong = opened(browser, server.address, permissions=["camera"])
    content = list((files / "photo.png").read_bytes())
    for kind, carrier in (("drop", "dataTransfer"), ("paste", "clipboardData")):
        page.evaluate(
            """([content, kind, carrier]) => {
                 const given = new DataTransfer();
                 given.items.add(new File([new Uint8Array(content)], `${kind}.png`, { type: "image/png" }));
                 const options = { [carrier]: given, bubbles: true, cancelable: true };
                 const Kind = kind === "drop" ? DragEvent : ClipboardEvent;
                 document.body.dispatchEvent(new Kind(kind, options));
               }""",
            [content, kind, carrier],
        )
        page.wait_for_selector("#download:enabled")
        assert page.evaluate("state.found.file_name") == f"{kind}.png"
    page.click("#camera")
    page.wait_for_selector("#camera-tools:not([hidden])")
    wait(page, "document.activeElement.id === 'shoot'")  # once the film runs
    wait(page, "document.getElementById('video').videoWidth > 0")
    page.click("#shoot")
    page.wait_for_selector("#download:enabled")
    assert page.evaluate("state.found.file_name") == "camera.jpg"
    assert page.evaluate("stream") is None  # the camera is off
    assert wrong == []
    close(page)


def test_the_token_is_asked_for(browser: Browser, files: Path) -> None:
    for server in served(ServeSettings(token="a-secret-token")):
        page, wrong = opened(browser, server.address)
        assert page.inner_text("#message") == "This server asks for its token."
        page.fill("#token", "wrong-token")
        page.keyboard.press("Enter")
        wait(page, "document.getElementById('message').textContent !== ''")
        page.fill("#token", "a-secret-token")
        page.keyboard.press("Enter")
        page.wait_for_selector("#token-form", state="hidden")
        upload(page, files / "photo.png")
        assert rows(page) > 0
        assert page.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0
        assert wrong == []
        close(page)


def test_the_page_of_the_api(browser: Browser, server: Served) -> None:
    page, wrong = opened(browser, server.address, "docs")
    text = page.inner_text("#operations")
    for part in ("/v1/detect", "/v1/explain", "/readyz", "max_detections", "multipart/form-data", "box_xyxy"):
        assert part in text
    assert wrong == []
    close(page)

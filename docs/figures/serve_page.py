"""docs/images/serve_page.jpg: the server's page in chromium, with where the model looked for a detection.

python docs/figures/serve_page.py http://127.0.0.1:8000 cells.jpg [--threshold 0.4 --detection 2 …]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from playwright.sync_api import sync_playwright

OUTPUT = Path(__file__).parents[1] / "images" / "serve_page.jpg"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address", help="of a running server")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--threshold", type=float, default=0.4)
    parser.add_argument("--detection", type=int, default=1, help="which one is chosen, from 1")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=860)
    parser.add_argument("--dark", action="store_true")
    given = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu", "--disable-quic"]
        )
        page = browser.new_page(
            viewport={"width": given.width, "height": given.height},
            color_scheme="dark" if given.dark else "light",
        )
        page.set_default_timeout(120_000)
        page.goto(given.address)
        page.wait_for_selector("body[data-ready=true]")
        page.set_input_files("#file", given.picture)
        page.wait_for_selector("#download:enabled")
        page.evaluate(
            "value => { const s = document.getElementById('threshold'); s.value = value; "
            "for (const kind of ['input', 'change']) s.dispatchEvent(new Event(kind)); }",
            round(100 * given.threshold),
        )
        page.focus(f"#detections li:nth-child({given.detection}) button")
        page.wait_for_selector("#look:not([hidden])")
        page.wait_for_timeout(500)
        quality = {"type": "jpeg", "quality": 85} if given.output.suffix == ".jpg" else {}
        page.screenshot(path=given.output, **quality)
        browser.close()


if __name__ == "__main__":
    main()

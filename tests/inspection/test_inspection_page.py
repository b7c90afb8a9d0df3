"""The page: it holds the report, is well-formed whatever names are in the data, loads nothing, and works."""

from __future__ import annotations

import base64
import json
import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deformable_detr.errors import UserError
from deformable_detr.inspection import DataReport, inspect, inspection_page, write_inspection
from tests.support.dataset_files import coco_content, write_coco
from tests.support.html_elements import NestedElements

EVIL = '</title><script>alert(1)</script><img src=x onerror="alert(2)">&{{body}}'
EVIL_FILE = '<b onmouseover=alert(3)>".jpg'.replace("/", "")
BOX = (5.0, 6.0, 25.0, 30.0)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> DataReport:
    """Two splits with a broken box of each kind, a doubled picture, a crowded one, and names to beware of."""
    root = tmp_path_factory.mktemp("data")
    for split in ("train", "val"):
        pictures = {EVIL_FILE: [(EVIL, BOX)] * 3 + [("größer", (0.0, 0.0, 4.0, 4.0))], "plain.jpg": []}
        content = coco_content(pictures)
        content["annotations"][0]["bbox"] = [10, 10, 0, 20]
        content["annotations"][1]["bbox"] = [50, 40, 90, 20]
        content["annotations"].append({**content["annotations"][2], "id": 9, "bbox": [500, 10, 20, 20]})
        content["annotations"].append(
            {**content["annotations"][2], "id": 10, "bbox": [float("nan"), 1, 2, 2]}
        )
        write_coco(root, content, split)
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "train" / EVIL_FILE)
    return inspect(root)


class Reader(NestedElements):
    """Keeps the visible text."""

    def __init__(self, text: str) -> None:
        self.text = ""
        super().__init__(text)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text += data + " "

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_names_are_escaped_and_nothing_is_loaded(report: DataReport) -> None:
    page = inspection_page(report)
    reader = Reader(page)
    assert EVIL in reader.text
    assert EVIL_FILE in reader.text
    assert len(reader.all("script")) == 1
    assert reader.all("img") == []
    assert not any(name.startswith("on") for _, attributes in reader.elements for name in attributes)
    policy = next(a for a in reader.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert (policy["content"] or "").startswith("default-src 'none'; img-src data:")
    assert not re.search(r"https?:|@import|url\(", page)
    assert all((each["href"] or "").startswith("data:image/jpeg;base64,") for each in reader.all("image"))
    assert all((each["href"] or "").startswith("#") for each in reader.all("a"))


def test_the_page_holds_the_report(report: DataReport) -> None:
    reader = Reader(inspection_page(report))
    text = " ".join(reader.text.split())
    for remark in report.remarks:
        assert remark.message.split("--")[0].split()[0] in text
    for split in report.splits:
        for problem in split.problems:
            assert problem.where in text
            assert problem.message in text
    sections = {attributes["id"] for attributes in reader.all("section")}
    assert sections == {
        *("remarks", "problems", "suspects", "tiniest", "crowded", "duplicates"),
        *("splits", "classes", "sizes", "samples"),
    }
    assert {(each["href"] or "")[1:] for each in reader.all("a")} == sections


def test_commands_and_names_of_code_stand_in_elements_not_in_backticks(tmp_path: Path) -> None:
    write_coco(tmp_path, coco_content({"a.jpg": [("cat", BOX)]}), "val")
    report = inspect(tmp_path)
    assert any("`train`" in remark.message for remark in report.remarks)
    page = inspection_page(report)
    assert "<code>train</code>" in page
    assert "`" not in Reader(page).text


def test_a_split_without_boxes_has_no_sizes(tmp_path: Path) -> None:
    write_coco(tmp_path, coco_content({"a.jpg": [("cat", BOX)]}), "train")
    write_coco(tmp_path, coco_content({"b.jpg": []}), "val")
    page = inspection_page(inspect(tmp_path))
    rows = re.findall(r'<tr><th scope="row">val, [^<]*</th>(.*?)</tr>', page)
    assert len(rows) > 1
    for row in rows:
        assert set(re.findall(r"<td>([^<]*)</td>", row)) == {"n/a"}
    (shares,) = re.findall(r'<tr><th scope="row">under 1</th>(.*?)</tr>', page)
    assert shares.endswith('<td class="none">n/a</td>')


def test_suspected_boxes_are_drawn_where_their_file_puts_them(report: DataReport) -> None:
    page = inspection_page(report)
    part = page[page.index('id="suspects"') : page.index('id="tiniest"')]
    first = part[: part.index("</figure>")]
    assert '<rect class="suspect" x="50" y="40" width="90" height="20">' in first
    assert '<circle class="suspect" cx="10" cy="20"' in first  # no area to draw
    x, y, width, height = map(int, re.search(r'viewBox="(\S+) (\S+) (\S+) (\S+)"', first).groups())  # type: ignore[union-attr]
    assert (x, y) == (0, 0)
    assert (width, height) == (96, 62)  # room for the box over the border; not for one 500 pixels away
    assert "nan" not in first


def test_pictures_are_small_enough_and_crops_hold_their_object(tmp_path: Path) -> None:
    tiny = (1500.0, 980.0, 1510.0, 992.0)
    write_coco(tmp_path, coco_content({"a.jpg": [("cat", tiny)]}, (1000, 2000)), size=(1000, 2000))
    page = inspection_page(inspect(tmp_path))
    shown = {
        section: re.search(
            rf'id="{section}".*?viewBox="(\S+) (\S+) (\S+) (\S+)".*?base64,([^"]+)"', page, re.S
        )
        for section in ("tiniest", "samples")
    }
    assert shown["tiniest"] is not None
    assert shown["samples"] is not None
    x, y, width, height = map(int, shown["tiniest"].groups()[:4])
    assert x < 1500
    assert x + width > 1510
    assert y < 980
    assert y + height == 1000  # not beyond the picture
    sizes = {
        name: Image.open(BytesIO(base64.b64decode(found[5]))).size for name, found in shown.items() if found
    }
    assert sizes == {"tiniest": (width, height), "samples": (800, 400)}


def test_pictures_that_do_not_open_are_left_out(tmp_path: Path) -> None:
    write_coco(tmp_path, coco_content({"a.jpg": [("cat", BOX)], "b.jpg": [("cat", BOX)]}))
    (tmp_path / "train" / "a.jpg").write_bytes(b"no picture")
    page = inspection_page(inspect(tmp_path))
    assert "train: b.jpg" in page
    assert "enlarge train: a.jpg" not in page
    assert "a.jpg is not an image" in page


def test_files_by_their_ending(report: DataReport, tmp_path: Path) -> None:
    write_inspection(report, tmp_path / "x.html")
    write_inspection(report, tmp_path / "x.json")
    assert (tmp_path / "x.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    content = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert content == report.to_dict()
    with pytest.raises(UserError, match=r"\.json or \.html"):
        write_inspection(report, tmp_path / "x.pdf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.html", "x.json"]

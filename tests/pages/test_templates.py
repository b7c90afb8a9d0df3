"""Templates: every value is escaped, none is missing in silence, and every page refuses to load anything."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from types import SimpleNamespace

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup

from deformable_detr.pages import Cell, Table, render, template_text
from tests.support.html_elements import NestedElements

EVIL = '</script><img src=x onerror="alert(1)">\'&amp;{{ 1 }}{% raw %}'
TEMPLATES = files("deformable_detr.pages") / "templates"


class Reader(NestedElements):
    def __init__(self, text: str) -> None:
        self.text = ""
        super().__init__(text)

    def handle_data(self, data: str) -> None:
        self.text += data


def explain(**content: object) -> str:
    return render("explain.html", **{"title": "t", "image": "data:,", "data": {}, **content})


def test_a_missing_value_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="title"):
        render("explain.html", image="data:,", data={})


def test_data_cannot_end_its_script() -> None:
    text = explain(data={"name": EVIL})
    (found,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', text)
    assert json.loads(found) == {"name": EVIL}
    with pytest.raises(ValueError, match="JSON"):
        explain(data={"score": float("nan")})


def test_text_is_escaped_and_markup_is_not() -> None:
    table = Table([EVIL], [[Cell(EVIL, tag=EVIL, title=EVIL), Markup("<i>x</i>"), EVIL]], EVIL, [EVIL])
    parts = {"classes": table, "sizes": table}
    section = SimpleNamespace(anchor="classes", navigation_entry=("classes", EVIL), title=EVIL, parts=parts)
    texts = dict.fromkeys(("title", "kicker", "headline", "command"), EVIL)
    origin = dict.fromkeys(("version", "model", "time"), EVIL)
    reader = Reader(render("report.html", **texts, origin=origin, sections=[section], tiles=(), limits=()))
    tags = [tag for tag, _ in reader.elements]
    assert "img" not in tags
    assert (tags.count("i"), tags.count("script")) == (2, 1)
    in_tables, elsewhere = 2 * (1 + 3 + 1), 2 + 3 + 2 + 3
    assert reader.text.count(EVIL) == in_tables + elsewhere
    assert [a["title"] for tag, a in reader.elements if tag == "th" and "title" in a] == [EVIL] * 2


def test_control_characters_are_shown_as_escapes() -> None:
    text = explain(title="a\x1b[2Jb")
    assert r"a\x1b[2Jb" in text
    assert "\x1b" not in text


@pytest.mark.parametrize("page", ["explain.html", "report.html", "inspection.html"])
def test_pages_have_one_head(page: str) -> None:
    assert template_text(page).startswith('{% extends "base.html" %}')


def test_no_file_of_a_page_loads_anything() -> None:
    texts = [path.read_text(encoding="utf-8") for path in TEMPLATES.iterdir() if path.is_file()]
    texts += [path.read_text(encoding="utf-8") for path in (TEMPLATES / "report").iterdir()]
    assert len(texts) > 20
    for text in texts:
        assert not re.search(r"https?:|@import|url\(|\| *safe|autoescape false", text)
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in template_text("base.html")

"""Small pieces of HTML that the sections share. Text is escaped here, except what is called `html`."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from .pictures import Shown


@dataclass(frozen=True)
class Cell:
    """Of a table. `html`: its content; `attributes`: of the element."""

    html: str
    attributes: str = ""


def table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str | Cell]],
    *,
    label: str,
    foot: Sequence[str | Cell] = (),
    kind: str = "",
    left: Sequence[int] = (),
) -> str:
    """Rows of cells, the first of each being its head; scrolls sideways where the screen is narrow.

    label: what the table shows, for those who do not see it. kind: classes of the style sheet. left: columns
    that are aligned to the left, as texts are.
    """

    def line(cells: Sequence[str | Cell]) -> str:
        parts = []
        for column, cell in enumerate(cells):
            made = Cell(escape(cell)) if isinstance(cell, str) else cell
            tag = "th" if column == 0 else "td"
            attributes = ' scope="row"' if column == 0 else ' class="left"' if column in left else ""
            attributes += f" {made.attributes}" if made.attributes else ""
            parts.append(f"<{tag}{attributes}>{made.html}</{tag}>")
        return f"<tr>{''.join(parts)}</tr>"

    head = "".join(
        f'<th scope="col"{" class=left" if column in left else ""}>{escape(text)}</th>'
        for column, text in enumerate(heads)
    )
    body = "".join(line(row) for row in rows)
    end = f"<tfoot>{line(foot)}</tfoot>" if foot else ""
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(label)}"><table class="{kind}">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>{end}</table></div>"
    )


def figure(title: str, chart_html: str, note: str = "") -> str:
    caption = f"<figcaption>{escape(note)}</figcaption>" if note else ""
    return f"<figure><h3>{escape(title)}</h3>{chart_html}{caption}</figure>"


def facts(rows: Mapping[str, str]) -> str:
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in rows.items())
    return f'<dl class="facts">{listed}</dl>'


def cards(shown: Iterable[Shown]) -> str:
    """Pictures of misses or false positives: some of each kind, or none if they could not be drawn."""
    listed = "".join(
        f'<figure class="card"><div class="pair"><img src="{each.whole}" alt="{escape(each.alt)}">'
        f'<img src="{each.near}" alt="Where the model looked"></div><figcaption><b>{escape(each.name)}</b> '
        f'<span class="tag">{escape(each.kind)}</span><br>{escape(each.facts)} '
        f"{escape(each.file_name)}</figcaption></figure>"
        for each in shown
    )
    if not listed:
        return (
            '<p class="dim">Their pictures need matplotlib: '
            '<code>pip install "deformable-detr[figures]"</code>, '
            "then <code>deformable-detr report</code>.</p>"
        )
    return f'<div class="cards">{listed}</div>'


def colour_key(colour: str, dashed: bool = False) -> str:
    style = "dashed" if dashed else "solid"
    return f'<span class="key" style="border-color:{colour};border-style:{style}"></span>'


def tag(text: str) -> str:
    return f'<span class="tag">{escape(text)}</span>'


# ---------------------------------------------------------------- words, not yet escaped


def value_text(value: Any) -> str:
    """A setting, as YAML writes it."""
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value)


def count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def when(time: str) -> str:
    """ISO 8601 in UTC, to the minute."""
    return f"{time[:16].replace('T', ' ')} UTC"


def command_line(*words: str) -> str:
    """To be pasted into a shell, whatever the names are."""
    return shlex.join(["deformable-detr", *words])

"""A parser for pages that checks that their elements are nested correctly."""

from __future__ import annotations

from html.parser import HTMLParser


class NestedElements(HTMLParser):
    """Parse a whole page when created, and fail if an element is not closed in order.

    `open` lists the tags around the current position, and `elements` every tag with its attributes. A
    subclass may also collect text; it must set its fields before this class parses the page.
    """

    VOID: tuple[str, ...] = ("meta", "img", "input", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

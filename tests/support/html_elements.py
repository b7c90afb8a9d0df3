"""Pages as tests read them: every element that is opened is closed, in order."""

from __future__ import annotations

from html.parser import HTMLParser


class NestedElements(HTMLParser):
    """Reads a whole page; fails where elements are not nested. `open`: tags around the place that is read;
    `elements`: every tag with its attributes. What a test keeps of the text, its subclass adds, with fields
    that are set before this class reads."""

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

"""Tables of a page; the macro `table` of parts.html draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

TableRow = Sequence["str | Cell"]


@dataclass(frozen=True)
class Cell:
    """A cell that is more than its text.

    `text`: Markup stays as it is. `tag`: a few words in a frame after it. `kind`: a class of the style sheet.
    `share`: how much of the cell to colour, in [0, 1]. `title`: shown when the pointer rests on the cell.
    `value`: the number to sort by, if it is not the text.
    """

    text: str
    tag: str = ""
    kind: str = ""
    share: float | None = None
    title: str = ""
    value: float | None = None

    @classmethod
    def of(cls, cell: str | Cell) -> Cell:
        return cell if isinstance(cell, Cell) else cls(cell)

    @property
    def attributes(self) -> dict[str, str | None]:
        """Of the element; None if it does not have this one."""
        return {
            "style": None if self.share is None else f"--share:{self.share:.3f}",
            "title": self.title or None,
            "data-value": None if self.value is None else f"{self.value:.4f}",
        }


@dataclass(frozen=True)
class Table:
    """Rows of cells, the first of each being its head; scrolls sideways on a narrow screen.

    `label`: what the table shows, for those who do not see it. `kind`: classes of the style sheet. `left`:
    columns that are aligned to the left, as texts are.
    """

    heads: Sequence[str]
    rows: Sequence[TableRow]
    label: str
    foot: TableRow = ()
    kind: str = ""
    left: Sequence[int] = ()

"""The tables of a page, which the macro `table` in parts.html draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

TableRow = Sequence["str | Cell"]


@dataclass(frozen=True)
class Cell:
    """A table cell that has more than plain text.

    Attributes:
        text: the cell's text, which is escaped unless it is Markup.
        tag: a few words in a frame after the text.
        kind: a class of the style sheet; empty for none.
        share: the share of the cell to colour, in [0, 1]; None for a cell without colour.
        title: the text that is shown when the pointer rests on the cell.
        value: the number to sort by, if the cell is not sorted by its text.
    """

    text: str
    tag: str = ""
    kind: str = ""
    share: float | None = None
    title: str = ""
    value: float | None = None

    @classmethod
    def from_text(cls, cell: str | Cell) -> Cell:
        return cell if isinstance(cell, Cell) else cls(cell)

    @property
    def attributes(self) -> dict[str, str | None]:
        """The attributes of the HTML element; the value is None for attributes that it does not have."""
        return {
            "style": None if self.share is None else f"--share:{self.share:.3f}",
            "title": self.title or None,
            "data-value": None if self.value is None else f"{self.value:.4f}",
        }


@dataclass(frozen=True)
class Table:
    """A table. The first cell of each row is its header. The table scrolls sideways on a narrow screen.

    Attributes:
        heads: the titles of the columns.
        rows: the rows of cells.
        label: a description for readers who do not see the table.
        foot: a row below the others, such as a sum; empty for none.
        kind: classes of the style sheet.
        left: the indices of the columns, besides the first, that are aligned to the left because they
            contain text.
    """

    heads: Sequence[str]
    rows: Sequence[TableRow]
    label: str
    foot: TableRow = ()
    kind: str = ""
    left: Sequence[int] = ()

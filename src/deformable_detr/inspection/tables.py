"""The tables of an inspection, for the terminal and the page."""

from __future__ import annotations

from collections.abc import Sequence

from ..pages import Cell, TableRow
from ..words import NOT_AVAILABLE
from .facts import DataReport, SplitReport
from .sizes import RecipeView, bin_names, spread


def overview(report: DataReport) -> list[list[str]]:
    """Return a row for each fact: the fact's name, then its value in each split.

    Leading spaces indent the names of subordinate facts.
    """
    splits = report.splits
    facts = {
        "images": [f"{split.images:,}" for split in splits],
        "  without objects": [f"{split.empty_images:,}" for split in splits],
        "  smallest": [_pixels(split.smallest_image) for split in splits],
        "  largest": [_pixels(split.largest_image) for split in splits],
        "boxes": [f"{split.boxes:,}" for split in splits],
        "  crowds": [f"{split.crowds:,}" for split in splits],
        "  difficult": [f"{split.difficult:,}" for split in splits],
        "objects per image, mean": [f"{split.objects_mean:.1f}" for split in splits],
        "objects per image, max": [f"{split.objects_max:,}" for split in splits],
        f"  over {report.view.num_queries} queries": [f"{split.over_queries:,}" for split in splits],
        "small (area < 32²)": [f"{split.small:.0%}" for split in splits],
        "medium (area < 96²)": [f"{split.medium:.0%}" for split in splits],
        "large": [f"{split.large:.0%}" for split in splits],
        "problems": [f"{len(split.problems):,}" for split in splits],
    }
    return [[name, *cells] for name, cells in facts.items()]


def class_boxes(report: DataReport, max_rows: int) -> list[TableRow]:
    """Return a row for each class: its row in the class head, its id, its name, and its boxes in each split.

    At most `max_rows` classes are listed. A split that does not list the class has "-" instead of a number,
    and so does the row in the class head if the split to train on does not list the class.
    """
    rows = report.class_rows()
    maxima = [max([1, *(row[3][column] or 0 for row in rows)]) for column in range(len(report.splits))]

    def cells(boxes: Sequence[int | None]) -> list[Cell]:
        return [
            Cell(f"{count:,}", kind="share", share=count / largest)
            if count
            else Cell("-" if count is None else "0", kind="none")
            for count, largest in zip(boxes, maxima, strict=True)
        ]

    return [
        ["-" if index is None else str(index), str(category_id), name, *cells(boxes)]
        for index, category_id, name, boxes in rows[:max_rows]
    ]


def size_bins(report: DataReport) -> list[TableRow]:
    """Return a row for each range of sizes, with the share of each split's objects that are in the range.

    The ranges are in cells of the finest level. The share of a split without objects is n/a.
    """

    def cell(split: SplitReport, row: int) -> Cell:
        if not split.sizes.count:
            return Cell(NOT_AVAILABLE, kind="none")
        share = split.sizes.bins[row] / split.sizes.count
        return Cell(f"{share:.0%}", kind="share", share=share)

    return [[name, *(cell(split, row) for split in report.splits)] for row, name in enumerate(bin_names())]


def size_spread(split: SplitReport, view: RecipeView) -> list[list[str]]:
    """Return rows with the quantiles of the objects' sizes, first in pixels, then in cells of each level.

    The first cell of a row names the split and the unit. The quantiles are n/a if there are no objects.
    """
    levels = [
        [f"{split.name}, cells of level {level} ({stride} px)", *spread(split.sizes, stride, 1)]
        for level, stride in enumerate(view.strides, start=1)
    ]
    return [[f"{split.name}, pixels", *spread(split.sizes, 1, 0)], *levels]


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"

"""The report as a file: JSON, or one HTML page with pictures that works offline, by keyboard and on a phone.

The template inspection.html draws the page.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.images import open_image
from ..data.records import Problem
from ..errors import UserError
from ..files import check_output_file, write_json, write_text
from ..pages import Cell, Table, TableRow, data_url, render
from ..words import NOT_AVAILABLE
from .duplicates import MOST_BITS
from .examples import Example, ExampleBox, Section
from .facts import DataReport, SplitReport, grouped
from .sizes import QUANTILES, bin_names, spread
from .terminal import forecast_sentences

SHOWN_SIDE = 800  # pixels of a picture in the page
LISTED = 200  # problems of a kind
CLASSES_SHOWN = 1000
SUFFIXES = (".json", ".html")
THIN = 0.01  # of the picture's width: a narrower box is too thin to be seen, so it gets a ring

_GALLERIES: dict[Section, tuple[str, str]] = {
    "suspects": ("Suspected boxes", "Dropped or clipped: the red, dashed ones, as their file states them."),
    "tiniest": ("The tiniest objects", "In the middle of each part, drawn pixel by pixel."),
    "crowded": ("The fullest picture", ""),
    "duplicates": (
        "The same picture again",
        "Side by side; their boxes should agree. "
        f"At most {MOST_BITS} of the 256 bits of their hashes differ.",
    ),
    "samples": ("Examples", "Spread evenly over each split. Do the boxes fit, do the classes?"),
}


@dataclass(frozen=True)
class ProblemList:
    """The problems of one kind in a split; `more`: how many are not in `listed`."""

    split: str
    kind: str
    count: int
    listed: Sequence[Problem]
    more: int


@dataclass(frozen=True)
class Shape:
    """A box to draw, in pixels of the picture: a rectangle, or a ring of `radius` if the box is too thin."""

    kind: str
    name: str
    colour: str
    x: float
    y: float
    width: float
    height: float
    radius: float = 0.0


@dataclass(frozen=True)
class Drawn:
    """A picture with its boxes. `view`: left, top, width, height of the part that is shown; `place`: of the
    picture."""

    name: str
    caption: str
    url: str
    view: tuple[int, int, int, int]
    place: tuple[int, int, int, int]
    shapes: Sequence[Shape]
    crisp: bool

    @property
    def legend(self) -> dict[tuple[str, str], int]:
        """(name, colour) and how many boxes have it."""
        return Counter((shape.name, shape.colour) for shape in self.shapes)


@dataclass(frozen=True)
class Gallery:
    title: str
    hint: str
    pictures: Sequence[Drawn]


def check_output(path: str | Path) -> None:
    """Raise a UserError if `write_inspection` cannot write such a file."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise UserError(f"--output {path}: the report is written as .json or .html, so give it that ending.")
    check_output_file(path)


def write_inspection(report: DataReport, path: str | Path) -> None:
    """Write JSON or the page, by the ending of `path`.

    Raises:
        UserError: another ending.
    """
    check_output(path)
    if Path(path).suffix.lower() == ".html":
        write_text(path, inspection_page(report))
    else:
        write_json(path, report.to_dict())


def inspection_page(report: DataReport) -> str:
    """The page. Opens the pictures of `report.examples`; those that do not open are left out."""
    galleries = {section: _gallery(report, section) for section in _GALLERIES}
    galleries = {section: gallery for section, gallery in galleries.items() if gallery.pictures}
    titles = {section: gallery.title for section, gallery in galleries.items()}
    problems = {"remarks": "What follows", "problems": f"Problems ({report.problem_count:,})"}
    tables = {"splits": "Splits", "classes": "Classes", "sizes": "Object sizes"}
    first = {section: titles[section] for section in ("suspects", "tiniest") if section in titles}
    return render(
        "inspection.html",
        report=report,
        title=report.root.resolve().name,
        sections=problems | first | tables | titles,
        galleries=galleries,
        images=sum(split.images for split in report.splits),
        boxes=sum(split.boxes for split in report.splits),
        forecast=() if report.forecast is None else forecast_sentences(report.forecast),
        problems=[
            ProblemList(split.name, kind, len(each), each[:LISTED], max(0, len(each) - LISTED))
            for split in report.splits
            for found in (split.problems, split.notes)
            for kind, each in grouped(found).items()
        ],
        splits=_overview(report),
        classes=_classes(report),
        more_classes=max(0, len(report.class_rows()) - CLASSES_SHOWN),
        bins=_bins(report),
        spread=_spread(report),
    )


# --- tables -----------------------------------------------------------------------------------------------


def _overview(report: DataReport) -> Table:
    splits = report.splits
    rows = [
        ("images", [f"{split.images:,}" for split in splits]),
        ("without objects", [f"{split.empty_images:,}" for split in splits]),
        ("smallest (width x height)", [_pixels(split.smallest_image) for split in splits]),
        ("largest", [_pixels(split.largest_image) for split in splits]),
        ("boxes", [f"{split.boxes:,}" for split in splits]),
        ("of them crowds", [f"{split.crowds:,}" for split in splits]),
        ("of them difficult", [f"{split.difficult:,}" for split in splits]),
        ("objects per image, mean", [f"{split.objects_mean:.1f}" for split in splits]),
        ("objects per image, max", [f"{split.objects_max:,}" for split in splits]),
        (f"images with more than {report.view.num_queries}", [f"{split.over_queries:,}" for split in splits]),
        ("small (area < 32²)", [f"{split.small:.0%}" for split in splits]),
        ("medium (area < 96²)", [f"{split.medium:.0%}" for split in splits]),
        ("large", [f"{split.large:.0%}" for split in splits]),
    ]
    heads = ["", *(split.name for split in splits)]
    return Table(heads, [[name, *cells] for name, cells in rows], "Splits")


def _classes(report: DataReport) -> Table:
    rows = report.class_rows()
    most = [max([1, *(row[3][column] or 0 for row in rows)]) for column in range(len(report.splits))]

    def cells(boxes: Sequence[int | None]) -> list[Cell]:
        return [
            Cell(f"{count:,}", kind="share", share=count / largest)
            if count
            else Cell("-" if count is None else "0", kind="none")
            for count, largest in zip(boxes, most, strict=True)
        ]

    heads = ["row of the class head", "id", "class", *(f"boxes {split.name}" for split in report.splits)]
    shown: list[TableRow] = [
        ["-" if index is None else str(index), str(category_id), name, *cells(boxes)]
        for index, category_id, name, boxes in rows[:CLASSES_SHOWN]
    ]
    return Table(heads, shown, "Boxes of each class", left=(2,))


def _bins(report: DataReport) -> Table:
    def cell(split: SplitReport, row: int) -> Cell:
        if not split.sizes.count:
            return Cell(NOT_AVAILABLE, kind="none")
        share = split.sizes.bins[row] / split.sizes.count
        return Cell(f"{share:.0%}", kind="share", share=share)

    rows: list[TableRow] = [
        [name, *(cell(split, row) for split in report.splits)] for row, name in enumerate(bin_names())
    ]
    heads = [f"cells of level 1 ({report.view.strides[0]} px)", *(split.name for split in report.splits)]
    return Table(heads, rows, "How many objects have which size")


def _spread(report: DataReport) -> Table:
    rows = []
    for split in report.splits:
        rows.append([f"{split.name}, pixels", *spread(split.sizes, 1, 0)])
        for level, stride in enumerate(report.view.strides, start=1):
            name = f"{split.name}, cells of level {level} ({stride} px)"
            rows.append([name, *spread(split.sizes, stride, 1)])
    return Table(["", *QUANTILES], rows, "Spread of the objects' sizes")


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]}"


# --- pictures ---------------------------------------------------------------------------------------------


def _gallery(report: DataReport, section: Section) -> Gallery:
    title, hint = _GALLERIES[section]
    examples = (example for example in report.examples if example.section == section)
    pictures = (_drawn(example, report.view.data.max_pixels) for example in examples)
    return Gallery(title, hint, [each for each in pictures if each is not None])


def _drawn(example: Example, max_pixels: int) -> Drawn | None:
    """The picture and its boxes; None if the picture does not open."""
    try:
        opened = open_image(example.path, annotated_size=example.size, max_pixels=max_pixels)
    except UserError:  # listed among the problems
        return None
    picture = opened.picture
    x0, y0, x1, y1 = example.crop_xyxy or (0, 0, picture.width, picture.height)
    left, top, right, bottom = x0, y0, x1, y1
    for box in example.boxes:
        if box.suspected:  # room for what is outside, up to half a picture
            left = max(-picture.width // 2, min(left, int(box.box_xyxy[0]) - 2))
            top = max(-picture.height // 2, min(top, int(box.box_xyxy[1]) - 2))
            right = min(picture.width * 3 // 2, max(right, int(box.box_xyxy[2]) + 2))
            bottom = min(picture.height * 3 // 2, max(bottom, int(box.box_xyxy[3]) + 2))
    inside = [box for box in example.boxes if box.suspected or _overlaps(box, (x0, y0, x1, y1))]
    return Drawn(
        name=f"{example.split}: {example.file_name}",
        caption=example.caption,
        url=data_url(picture.crop((x0, y0, x1, y1)), SHOWN_SIDE),
        view=(left, top, right - left, bottom - top),
        place=(x0, y0, x1 - x0, y1 - y0),
        shapes=[_shape(box, right - left) for box in inside],
        crisp=example.crop_xyxy is not None,
    )


def _overlaps(box: ExampleBox, part: tuple[int, int, int, int]) -> bool:
    x0, y0, x1, y1 = box.box_xyxy
    return x0 < part[2] and x1 > part[0] and y0 < part[3] and y1 > part[1]


def _shape(box: ExampleBox, shown_width: int) -> Shape:
    x0, y0, x1, y1 = box.box_xyxy
    width, height = abs(x1 - x0), abs(y1 - y0)
    kind = "suspect" if box.suspected else "" if box.marked else "other"
    if box.suspected and min(width, height) < THIN * shown_width:
        middle = (x0 + x1) / 2, (y0 + y1) / 2
        return Shape(kind, box.name, _colour(box), *middle, width, height, radius=3 * THIN * shown_width)
    return Shape(kind, box.name, _colour(box), min(x0, x1), min(y0, y1), width, height)


def _colour(box: ExampleBox) -> str:
    """Neighbouring classes are far apart on the wheel: the golden angle between them."""
    return "#ff2d2d" if box.suspected else f"hsl({(150 + 137.5 * box.index) % 360:.0f} 90% 58%)"

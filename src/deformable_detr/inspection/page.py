"""The report of an inspection as a file: JSON, or one HTML page with pictures.

The page works offline, with the keyboard and on a phone. Its template is pages/templates/inspection.html.
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
from ..pages import Table, data_url, render
from .duplicates import MAX_BITS
from .examples import Example, ExampleBox, Section
from .facts import DataReport, grouped
from .sizes import QUANTILES
from .tables import class_boxes, overview, size_bins, size_spread
from .terminal import forecast_sentences

SHOWN_SIDE = 800  # the maximum side of a picture in the page, in pixels
LISTED = 200  # the maximum number of problems that are listed of each kind
CLASSES_SHOWN = 1000
SUFFIXES = (".json", ".html")
THIN = 0.01  # of the shown width: a suspected box with a shorter side is too thin to be seen and gets a ring

_GALLERIES: dict[Section, tuple[str, str]] = {
    "suspects": (
        "Suspected boxes",
        "Red, dashed boxes were dropped or clipped. They are shown as in the file.",
    ),
    "tiniest": ("The tiniest objects", "Each is in the middle of its picture, drawn pixel by pixel."),
    "crowded": ("The fullest picture", ""),
    "duplicates": (
        "Duplicate pictures",
        "Equal pictures are shown side by side; their boxes should agree. "
        f"At most {MAX_BITS} of the 256 bits of their hashes differ.",
    ),
    "samples": (
        "Examples",
        "Spread evenly over each split: check that the boxes and classes are right.",
    ),
}


@dataclass(frozen=True)
class ProblemList:
    """The problems or notes of one kind in a split.

    Attributes:
        count: the number of all problems of this kind in the split.
        listed: the first of them, which the page lists.
        more: the number of problems that are not in `listed`.
    """

    split: str
    kind: str
    count: int
    listed: Sequence[Problem]
    more: int


@dataclass(frozen=True)
class Shape:
    """A box to draw, in pixels of the picture: a rectangle, or a ring around a suspect box that is thin.

    Attributes:
        kind: the CSS class: `suspect`, `other` for a box that the example is not about, or an empty string.
        name: the name of the class, or the kind of problem of a suspect box.
        colour: the colour of the line, in CSS.
        x, y: the left and top of the rectangle, or the centre of the ring.
        width, height: the size of the box, also for a ring.
        radius: the radius of the ring; 0 for a rectangle.
    """

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
    """A picture, or a part of one, with its boxes.

    Attributes:
        view: the area that is shown, (left, top, width, height) in pixels of the whole picture. It may extend
            beyond the picture if a suspected box does.
        place: the area that the picture at `url` covers, in the format of `view`.
        crisp: True if `url` is a part of the picture, whose pixels are drawn without smoothing.
    """

    name: str
    caption: str
    url: str
    view: tuple[int, int, int, int]
    place: tuple[int, int, int, int]
    shapes: Sequence[Shape]
    crisp: bool

    @property
    def legend(self) -> dict[tuple[str, str], int]:
        """The number of boxes for each pair (name, colour)."""
        return Counter((shape.name, shape.colour) for shape in self.shapes)


@dataclass(frozen=True)
class Gallery:
    """The pictures of one kind of example, with a title and a hint on what to look for."""

    title: str
    hint: str
    pictures: Sequence[Drawn]


def check_output(path: str | Path) -> None:
    """Raise a UserError if `write_inspection` cannot write a file of this name."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise UserError(f"--output {path} must end in .json or .html.")
    check_output_file(path)


def write_inspection(report: DataReport, path: str | Path) -> None:
    """Write the report as JSON or as a page, depending on the suffix of `path` (.json or .html).

    Raises:
        UserError: if `path` has another suffix, or the file cannot be written.
    """
    check_output(path)
    if Path(path).suffix.lower() == ".html":
        write_text(path, inspection_page(report))
    else:
        write_json(path, report.to_dict())


def inspection_page(report: DataReport) -> str:
    """Return the report as an HTML page with those pictures of `report.examples` that can be opened."""
    galleries = {section: _gallery(report, section) for section in _GALLERIES}
    galleries = {section: gallery for section, gallery in galleries.items() if gallery.pictures}
    titles = {section: gallery.title for section, gallery in galleries.items()}
    problems = {"remarks": "Remarks", "problems": f"Problems ({report.problem_count:,})"}
    tables = {"splits": "Splits", "classes": "Classes", "sizes": "Object sizes"}
    first = {section: titles[section] for section in ("suspects", "tiniest") if section in titles}
    names = [split.name for split in report.splits]
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
            ProblemList(split.name, kind, len(of_kind), of_kind[:LISTED], max(0, len(of_kind) - LISTED))
            for split in report.splits
            for problems_or_notes in (split.problems, split.notes)
            for kind, of_kind in grouped(problems_or_notes).items()
        ],
        splits=Table(["", *names], overview(report), "Splits"),
        classes=Table(
            ["row of the class head", "id", "class", *(f"boxes {name}" for name in names)],
            class_boxes(report, CLASSES_SHOWN),
            "Boxes of each class",
            left=(2,),
        ),
        more_classes=max(0, len(report.class_rows()) - CLASSES_SHOWN),
        bins=Table(
            [f"cells of level 1 ({report.view.strides[0]} px)", *names], size_bins(report), "Object sizes"
        ),
        spread=Table(
            ["", *QUANTILES],
            [row for split in report.splits for row in size_spread(split, report.view)],
            "Spread of the object sizes",
        ),
    )


# --- pictures ---------------------------------------------------------------------------------------------


def _gallery(report: DataReport, section: Section) -> Gallery:
    title, hint = _GALLERIES[section]
    examples = (example for example in report.examples if example.section == section)
    pictures = (_drawn(example, report.view.data.max_pixels) for example in examples)
    return Gallery(title, hint, [picture for picture in pictures if picture is not None])


def _drawn(example: Example, max_pixels: int) -> Drawn | None:
    """Return an example's picture, or the part of it to show, with the boxes to draw on it.

    Return None if the picture cannot be opened or has more than `max_pixels` pixels.
    """
    try:
        opened = open_image(example.path, annotated_size=example.size, max_pixels=max_pixels)
    except UserError:  # it is listed among the problems
        return None
    picture = opened.picture
    x0, y0, x1, y1 = example.crop_xyxy or (0, 0, picture.width, picture.height)
    left, top, right, bottom = x0, y0, x1, y1
    for box in example.boxes:
        if box.suspected:  # leave room for boxes outside the picture, up to half its size
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
    """Return red for a suspected box, and otherwise the colour of its class.

    Successive classes are the golden angle apart on the colour wheel.
    """
    return "#ff2d2d" if box.suspected else f"hsl({(150 + 137.5 * box.index) % 360:.0f} 90% 58%)"

"""What is in a data set, and what is broken in it, before a model learns from it.

`inspect` reads every split, looks at the header of every image and counts; `print_report` shows the result
in 80 columns, `DataReport.to_dict` as JSON. Nothing is decoded and nothing is changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .data.formats import NOTES, formats_found, list_splits, read_split
from .data.images import read_header, should_rotate
from .data.records import ImageRecord, Problem, Split
from .errors import UserError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

# COCO's size classes: by area in pixels, below 32² and below 96².
_SMALL, _MEDIUM = 32.0**2, 96.0**2
_EXAMPLES = 3
_CLASSES_SHOWN = 100


@dataclass(frozen=True)
class ClassCount:
    """`index`: the class index inside the model; `category_id`: the data set's own. `boxes` without crowds;
    `images`: with at least one of these boxes."""

    index: int
    name: str
    category_id: int
    boxes: int
    images: int


@dataclass(frozen=True)
class SplitReport:
    """One split in numbers.

    `boxes`: all objects, the `crowds` and `difficult` ones among them. `empty_images`: without any object.
    `objects_mean`, `objects_max`: objects per image, crowds excepted, since a model needs no query for them.
    `small`, `medium`, `large`: shares of the objects by COCO's area (below 32², below 96², the rest), crowds
    excepted; 0 where there is none. `smallest_image`, `largest_image`: (H, W) by number of pixels.
    `images_checked`: whether the image files were looked at. `rotated`: images that are turned by EXIF when
    opened; `not_rotated`: those whose EXIF is passed over, because they were annotated as they are stored.
    `problems`: all of them, in the order of the files; `notes`: remarks that cost nothing.
    """

    name: str
    source: Path
    images: int
    boxes: int
    crowds: int
    difficult: int
    empty_images: int
    objects_mean: float
    objects_max: int
    small: float
    medium: float
    large: float
    smallest_image: tuple[int, int]
    largest_image: tuple[int, int]
    classes: tuple[ClassCount, ...]
    images_checked: bool
    rotated: int
    not_rotated: int
    problems: tuple[Problem, ...]
    notes: tuple[Problem, ...]

    @property
    def classes_without_box(self) -> tuple[str, ...]:
        return tuple(row.name for row in self.classes if row.boxes == 0)

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "source": str(self.source),
            "images": self.images,
            "boxes": self.boxes,
            "crowds": self.crowds,
            "difficult": self.difficult,
            "empty_images": self.empty_images,
            "objects_per_image": {"mean": self.objects_mean, "max": self.objects_max},
            "sizes": {"small": self.small, "medium": self.medium, "large": self.large},
            "image_size": {"smallest": list(self.smallest_image), "largest": list(self.largest_image)},
            "classes": [
                {
                    "index": row.index,
                    "name": row.name,
                    "category_id": row.category_id,
                    "boxes": row.boxes,
                    "images": row.images,
                }
                for row in self.classes
            ],
            "classes_without_box": list(self.classes_without_box),
            "images_checked": self.images_checked,
            "rotated": self.rotated,
            "not_rotated": self.not_rotated,
            "problems": _by_kind(self.problems),
            "notes": _by_kind(self.notes),
        }


@dataclass(frozen=True)
class DataReport:
    """`format`: the layout that was read; `formats`: all in which the data set is there."""

    root: Path
    format: str
    formats: tuple[str, ...]
    splits: tuple[SplitReport, ...]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON. Problems are counted by kind, with the first examples of each."""
        return {
            "root": str(self.root),
            "format": self.format,
            "formats": list(self.formats),
            "splits": [split.to_dict() for split in self.splits],
        }


def inspect(
    data: str | Path,
    *,
    format: str = "auto",
    splits: Sequence[str] | None = None,
    check_images: bool = True,
) -> DataReport:
    """Read a data set and count.

    data: its folder (or a COCO JSON or YOLO YAML file). format: coco, voc, yolo, or auto. splits: their
    names, all by default. check_images: look at the header of every image file: does it open, is its size
    the annotated one, does EXIF turn it.

    Raises UserError where there is no data set, an unknown split, or one without any usable image.
    """
    names = list_splits(data, format=format) if splits is None else tuple(splits)
    if not names:
        raise UserError(f"{data} has no splits: nothing to inspect.")
    parts = [read_split(data, name, format=format) for name in names]
    return DataReport(
        root=Path(data),
        format=parts[0].format,
        formats=formats_found(data),
        splits=tuple(_report(part, check_images) for part in parts),
    )


def _report(split: Split, check_images: bool) -> SplitReport:
    images = split.images
    crowd = np.concatenate([image.crowd for image in images])
    area = np.concatenate([image.area for image in images])[~crowd]
    objects = np.array([np.count_nonzero(~image.crowd) for image in images])
    # A share of nothing is 0.
    total = max(1, len(area))
    small = np.count_nonzero(area < _SMALL) / total
    medium = np.count_nonzero((area >= _SMALL) & (area < _MEDIUM)) / total
    large = np.count_nonzero(area >= _MEDIUM) / total

    sizes = sorted((image.size for image in images), key=lambda size: (size[0] * size[1], size))
    check = _check_images(images) if check_images else _ImageCheck()
    found = (*split.problems, *check.problems)
    return SplitReport(
        name=split.name,
        source=split.source,
        images=len(images),
        boxes=len(crowd),
        crowds=int(crowd.sum()),
        difficult=sum(int(image.difficult.sum()) for image in images),
        empty_images=sum(len(image) == 0 for image in images),
        objects_mean=float(objects.mean()),
        objects_max=int(objects.max()),
        small=small,
        medium=medium,
        large=large,
        smallest_image=sizes[0],
        largest_image=sizes[-1],
        classes=_class_counts(split),
        images_checked=check_images,
        rotated=check.rotated,
        not_rotated=check.not_rotated,
        problems=tuple(problem for problem in found if problem.kind not in NOTES),
        notes=tuple(problem for problem in found if problem.kind in NOTES),
    )


def _class_counts(split: Split) -> tuple[ClassCount, ...]:
    boxes = np.zeros(len(split.classes), dtype=np.int64)
    images = np.zeros(len(split.classes), dtype=np.int64)
    for image in split.images:
        labels = image.labels[~image.crowd]
        np.add.at(boxes, labels, 1)
        images[np.unique(labels)] += 1
    return tuple(
        ClassCount(index, split.classes.name(index), category_id, int(boxes[index]), int(images[index]))
        for index, category_id in enumerate(split.classes.category_ids)
    )


@dataclass(frozen=True)
class _ImageCheck:
    rotated: int = 0
    not_rotated: int = 0
    problems: tuple[Problem, ...] = ()


def _check_images(images: Sequence[ImageRecord]) -> _ImageCheck:
    rotated = not_rotated = 0
    problems = []
    for image in images:
        try:
            header = read_header(image.path)
        except UserError as error:
            problems.append(Problem("unreadable-image", image.file_name, str(error)))
            continue
        rotate = should_rotate(header, image.size)
        rotated += rotate
        not_rotated += header.orientation != 1 and not rotate
        size = header.upright_size if rotate else header.stored_size
        if size != image.size:
            message = (
                f"the file has {size[1]} x {size[0]} pixels, the annotation says "
                f"{image.size[1]} x {image.size[0]}: its boxes belong to another picture"
            )
            problems.append(Problem("image-size-differs", image.file_name, message))
    return _ImageCheck(rotated, not_rotated, tuple(problems))


def _by_kind(problems: Sequence[Problem]) -> dict[str, Any]:
    """Kind → count and first examples, the most frequent kind first."""
    kinds: dict[str, list[Problem]] = {}
    for problem in problems:
        kinds.setdefault(problem.kind, []).append(problem)
    return {
        kind: {
            "count": len(found),
            "examples": [{"where": item.where, "message": item.message} for item in found[:_EXAMPLES]],
        }
        for kind, found in sorted(kinds.items(), key=lambda item: -len(item[1]))
    }


# --- on the terminal --------------------------------------------------------------------------------------


def print_report(report: DataReport, console: Console) -> None:
    """Show the report; readable from 80 columns on."""
    also = [name for name in report.formats if name != report.format]
    others = f" (also there: {', '.join(also)}; choose with --format)" if also else ""
    console.print(_text(f"{report.root}: {report.format} data set{others}", "bold"))
    console.print(_overview(report))
    console.print(_class_table(report))
    for split in report.splits:
        _print_remarks(split, console)
    if not any(split.problems for split in report.splits):
        looked = all(split.images_checked for split in report.splits)
        console.print(_text("No problems found." if looked else "No problems found; images not opened."))


def _overview(report: DataReport) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for split in report.splits:
        table.add_column(_text(split.name), justify="right")
    rows = {
        "images": [f"{split.images:,}" for split in report.splits],
        "  without objects": [f"{split.empty_images:,}" for split in report.splits],
        "  smallest": [_pixels(split.smallest_image) for split in report.splits],
        "  largest": [_pixels(split.largest_image) for split in report.splits],
        "boxes": [f"{split.boxes:,}" for split in report.splits],
        "  of them crowds": [f"{split.crowds:,}" for split in report.splits],
        "  of them difficult": [f"{split.difficult:,}" for split in report.splits],
        "objects per image, mean": [f"{split.objects_mean:.1f}" for split in report.splits],
        "objects per image, max": [f"{split.objects_max:,}" for split in report.splits],
        "small (area < 32²)": [f"{split.small:.0%}" for split in report.splits],
        "medium (area < 96²)": [f"{split.medium:.0%}" for split in report.splits],
        "large": [f"{split.large:.0%}" for split in report.splits],
        "problems": [f"{len(split.problems):,}" for split in report.splits],
    }
    for name, cells in rows.items():
        table.add_row(name, *cells)
    return table


def _class_table(report: DataReport) -> Table:
    """Boxes of each class, all splits side by side. Splits may differ in their classes."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("id", justify="right")
    table.add_column("class", max_width=32)
    for split in report.splits:
        table.add_column(_text(f"boxes {split.name}"), justify="right")
    counts = [{(row.category_id, row.name): row.boxes for row in split.classes} for split in report.splits]
    keys = sorted({key for split in counts for key in split})
    for key in keys[:_CLASSES_SHOWN]:
        cells = [f"{split[key]:,}" if key in split else "-" for split in counts]
        table.add_row(str(key[0]), _text(key[1]), *cells)
    if len(keys) > _CLASSES_SHOWN:
        table.add_row("", f"and {len(keys) - _CLASSES_SHOWN} more")
    return table


def _print_remarks(split: SplitReport, console: Console) -> None:
    missing = split.classes_without_box
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        classes = "1 class" if len(missing) == 1 else f"{len(missing)} classes"
        console.print(_text(f"{split.name}: {classes} without any box: {shown}"))
    if split.rotated:
        console.print(_text(f"{split.name}: images turned upright by their EXIF data: {split.rotated}"))
    if split.not_rotated:
        kept = "images left lying against their EXIF data, as they were annotated"
        console.print(_text(f"{split.name}: {kept}: {split.not_rotated}"))
    for style, found in (("yellow", split.problems), ("", split.notes)):
        for kind, entry in _by_kind(found).items():
            console.print(_text(f"{split.name}: {entry['count']} x {kind}", style))
            for example in entry["examples"]:
                console.print(_text(f"  {example['where']}: {example['message']}"))
            if entry["count"] > len(entry["examples"]):
                console.print(_text(f"  and {entry['count'] - len(entry['examples'])} more"))


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"


def _text(content: str, style: str = "") -> Text:
    """Names come from files: no markup is read in them, and nothing in them commands the terminal."""
    from rich.text import Text

    return Text("".join(letter if letter.isprintable() else "�" for letter in content), style)

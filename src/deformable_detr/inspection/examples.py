"""Choose the pictures that the page of an inspection shows.

They are samples, the picture with the most objects, and pictures with tiny objects, suspect boxes or
duplicates.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from ..data.formats import NOTES
from ..data.records import ImageRecord, Problem, Split
from .duplicates import DuplicateGroup
from .sizes import RecipeView, sizes_of

SAMPLES, TINIEST, SUSPECTS, PAIRS = 6, 6, 6, 3
TINIEST_PER_PICTURE = 2

Section = Literal["samples", "crowded", "tiniest", "suspects", "duplicates"]


@dataclass(frozen=True)
class ExampleBox:
    """A box of an example.

    Attributes:
        box_xyxy: the box in pixels of the picture. A suspect box is kept as its file states it, even if it is
            outside the picture.
        name: the name of the class, or the kind of problem of a suspect box.
        index: the class index; -1 for a suspect box.
        suspected: True for a suspect box, which was dropped or clipped when the data set was read.
        marked: False for the neighbours of the tiny object that a picture illustrates; True for all other
            boxes.
    """

    box_xyxy: tuple[float, float, float, float]
    name: str
    index: int
    suspected: bool = False
    marked: bool = True


@dataclass(frozen=True)
class Example:
    """A picture to show.

    Attributes:
        section: the section of the page that shows the picture.
        size: the picture's annotated (height, width), in pixels.
        boxes: all boxes of the picture, followed by its suspect boxes if it illustrates them.
        crop_xyxy: the part to show, in whole pixels, or None for the whole picture.
    """

    section: Section
    split: str
    path: Path
    file_name: str
    size: tuple[int, int]
    boxes: tuple[ExampleBox, ...]
    caption: str
    crop_xyxy: tuple[int, int, int, int] | None = None


def choose_examples(
    splits: Sequence[Split], view: RecipeView, duplicates: Sequence[DuplicateGroup]
) -> tuple[Example, ...]:
    """Choose the pictures to show: suspect boxes, tiny objects, the fullest picture, duplicates and samples.

    The same data always give the same choice. Pictures that cannot be read may be among those chosen.

    Args:
        splits: the splits, each with at least one image.
        view: the settings of the recipe, which determine the sizes of objects after resizing.
        duplicates: the groups of duplicate pictures in these splits, of which the first `PAIRS` are shown.
    """
    return (
        *_suspects(splits),
        *_tiniest(splits, view),
        *_crowded(splits, view),
        *_duplicates(splits, duplicates),
        *(example for split in splits for example in _samples(split)),
    )


def _example(
    section: Section,
    split: Split,
    image: ImageRecord,
    caption: str,
    suspected: Iterable[ExampleBox] = (),
    crop_xyxy: tuple[int, int, int, int] | None = None,
) -> Example:
    boxes = [
        ExampleBox(tuple(box), split.classes.name(label), label)
        for box, label in zip(image.boxes_xyxy.tolist(), image.labels.tolist(), strict=True)
    ]
    return Example(
        section,
        split.name,
        image.path,
        image.file_name,
        image.size,
        (*boxes, *suspected),
        caption,
        crop_xyxy,
    )


def _samples(split: Split) -> list[Example]:
    filled = [image for image in split.images if len(image)] or list(split.images)
    chosen = np.unique(np.linspace(0, len(filled) - 1, min(SAMPLES, len(filled))).astype(int))
    return [_example("samples", split, filled[i], f"{len(filled[i])} objects") for i in chosen.tolist()]


def _crowded(splits: Sequence[Split], view: RecipeView) -> list[Example]:
    counts = [(image.num_objects, split, image) for split in splits for image in split.images]
    most, split, image = max(counts, key=lambda entry: entry[0])
    caption = f"{most} objects, the most in one picture; the recipe has {view.num_queries} queries"
    return [_example("crowded", split, image, caption)] if most > 1 else []


def _tiniest(splits: Sequence[Split], view: RecipeView) -> list[Example]:
    found = []
    for number, split in enumerate(splits):
        for at, image in enumerate(split.images):
            pixels = sizes_of([image], view.data)
            found += [(float(size), number, at, row) for row, size in enumerate(pixels)]
    examples: list[Example] = []
    shown: dict[tuple[int, int], int] = {}
    for size, number, at, row in sorted(found):
        if len(examples) == TINIEST:
            break
        shown[number, at] = shown.get((number, at), 0) + 1
        if shown[number, at] > TINIEST_PER_PICTURE:
            continue
        image = splits[number].images[at]
        index = np.flatnonzero(~image.crowd)[row]
        box = image.boxes_xyxy[index]
        caption = f"{size:.1f} pixels after resizing: {size / view.strides[0]:.1f} cells of the finest level"
        example = _example("tiniest", splits[number], image, caption, crop_xyxy=_around(box, image.size))
        boxes = (replace(each, marked=i == index) for i, each in enumerate(example.boxes))
        examples.append(replace(example, boxes=tuple(boxes)))
    return examples


def _around(box: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return a square part of a picture, (x0, y0, x1, y1) in whole pixels, with an object in its middle.

    The sides of the square are 8 times as long as the object's longer side and at least 96 pixels. Anything
    beyond the border of the picture is cut off.

    Args:
        box: the object's box, (x0, y0, x1, y1) in pixels of the picture.
        size: the picture's (height, width) in pixels.
    """
    height, width = size
    x0, y0, x1, y1 = box.tolist()
    half = max(48.0, 4 * max(x1 - x0, y1 - y0))
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    return (
        max(0, int(x - half)),
        max(0, int(y - half)),
        min(width, int(x + half) + 1),
        min(height, int(y + half) + 1),
    )


def _suspects(splits: Sequence[Split]) -> list[Example]:
    """Choose at most `SUSPECTS` pictures with boxes that were dropped or clipped.

    The first picture of each kind of problem in each split comes before the second of any kind.
    """
    found: list[tuple[int, Split, ImageRecord, list[Problem]]] = []
    for split in splits:
        records = {image.path: image for image in split.images}
        by_image: dict[Path, list[Problem]] = {}
        for problem in split.problems:
            if problem.box_xyxy is not None and problem.image in records and problem.kind not in NOTES:
                by_image.setdefault(problem.image, []).append(problem)
        kinds: dict[str, int] = {}
        for path, problems in by_image.items():
            kind = problems[0].kind
            kinds[kind] = kinds.get(kind, 0) + 1
            found.append((kinds[kind], split, records[path], problems))
    examples = []
    for _, split, image, problems in sorted(found, key=lambda entry: entry[0])[:SUSPECTS]:
        boxes = [
            ExampleBox(problem.box_xyxy, problem.kind, -1, suspected=True)
            for problem in problems
            if problem.box_xyxy is not None and np.isfinite(problem.box_xyxy).all()
        ]
        first = problems[0]
        more = f" (and {len(problems) - 1} more here)" if len(problems) > 1 else ""
        examples.append(_example("suspects", split, image, f"{first.where}: {first.message}{more}", boxes))
    return examples


def _duplicates(splits: Sequence[Split], groups: Sequence[DuplicateGroup]) -> list[Example]:
    by_name = {(split.name, image.file_name): (split, image) for split in splits for image in split.images}
    examples = []
    for number, group in enumerate(groups[:PAIRS], start=1):
        for member in group.members[:2]:
            split, image = by_name[member]
            caption = (
                f"group {number}: {len(group.members)} equal pictures, up to {group.bits} of 256 bits apart"
            )
            examples.append(_example("duplicates", split, image, caption))
    return examples

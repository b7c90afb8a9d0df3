"""What an inspection finds, as plain dataclasses: ready for the terminal, for JSON and for the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..data.formats.splits import training_name
from ..data.records import Problem
from .duplicates import DuplicateGroup
from .examples import Example
from .sizes import ObjectSizes, RecipeView

EXAMPLES = 3  # of a kind of problem


@dataclass(frozen=True)
class ClassCount:
    """`index`: the class index inside the model, its row of the class head; `category_id`: the data set's
    own. `boxes` without crowds; `images`: with at least one of these boxes."""

    index: int
    name: str
    category_id: int
    boxes: int
    images: int


@dataclass(frozen=True)
class SplitReport:
    """One split in numbers.

    `boxes`: all objects, the `crowds` and `difficult` ones among them. `empty_images`: without any object.
    `objects_mean`, `objects_max`: objects per image, crowds excepted, since a model needs no query for them;
    `over_queries`: images with more objects than the recipe has queries.
    `small`, `medium`, `large`: shares of the objects by COCO's area (below 32², below 96², the rest), crowds
    excepted; 0 if there is none. `sizes`: of the same objects where the model sees them.
    `smallest_image`, `largest_image`: (H, W) by number of pixels.
    `images_checked`: decode, headers or no, see `inspect`. `rotated`: images that are turned by EXIF when
    opened; `not_rotated`: those whose EXIF is passed over, because they were annotated as they are stored.
    `problems`: all of them, in the order of the files, but for those that an earlier split has; `notes`:
    remarks that cost nothing.
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
    over_queries: int
    small: float
    medium: float
    large: float
    sizes: ObjectSizes
    smallest_image: tuple[int, int]
    largest_image: tuple[int, int]
    classes: tuple[ClassCount, ...]
    images_checked: str
    rotated: int
    not_rotated: int
    problems: tuple[Problem, ...]
    notes: tuple[Problem, ...]

    @property
    def classes_without_box(self) -> tuple[str, ...]:
        return tuple(row.name for row in self.classes if row.boxes == 0)

    def to_dict(self, view: RecipeView) -> dict[str, Any]:
        return {
            "name": self.name,
            "source": str(self.source),
            "images": self.images,
            "boxes": self.boxes,
            "crowds": self.crowds,
            "difficult": self.difficult,
            "empty_images": self.empty_images,
            "objects_per_image": {
                "mean": self.objects_mean,
                "max": self.objects_max,
                "images_with_more_than_queries": self.over_queries,
            },
            "sizes": {"small": self.small, "medium": self.medium, "large": self.large},
            "sizes_resized": self.sizes.to_dict(view.strides),
            "image_size": {"smallest": list(self.smallest_image), "largest": list(self.largest_image)},
            "classes": [asdict(row) for row in self.classes],
            "classes_without_box": list(self.classes_without_box),
            "images_checked": self.images_checked,
            "rotated": self.rotated,
            "not_rotated": self.not_rotated,
            "problems": by_kind(self.problems),
            "notes": by_kind(self.notes),
        }


@dataclass(frozen=True)
class Remark:
    """One sentence about the data set as a whole: what is so, and the option that helps, if one does."""

    kind: str
    message: str


@dataclass(frozen=True)
class Forecast:
    """What training will cost here, measured on a few updates with this data (forecast.py).

    Seconds: of an update and its standard deviation among those measured; what the processor worked for it,
    all threads together; of the evaluation after an epoch (0: no validation split). Bytes: of the training
    process and its loaders at their worst, for a batch of the largest pictures; `gpu_bytes`: of the graphics
    memory, 0 on a CPU. `load`: processes that wanted to run on the `cores`.
    """

    recipe: str
    device: str
    batch_size: int
    updates_measured: int
    update_seconds: float
    update_spread: float
    update_cpu_seconds: float
    updates_per_epoch: int
    evaluation_seconds: float
    epochs: int
    peak_bytes: int
    gpu_bytes: int
    largest_batch: tuple[int, int]
    threads: int
    cores: int
    load: float

    @property
    def slowed(self) -> float:
        """How many times slower than alone, at most, other programs made the updates; 1 on a GPU."""
        if self.gpu_bytes:
            return 1.0
        return max(1.0, self.update_seconds / (self.update_cpu_seconds / self.threads))

    @property
    def epoch_seconds(self) -> float:
        return self.updates_per_epoch * self.update_seconds + self.evaluation_seconds

    @property
    def total_seconds(self) -> float:
        return self.epochs * self.epoch_seconds

    def to_dict(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "largest_batch": list(self.largest_batch),
            "epoch_seconds": self.epoch_seconds,
            "total_seconds": self.total_seconds,
        }


@dataclass(frozen=True)
class DataReport:
    """`format`: the layout that was read; `formats`: all in which the data set is there. `view`: the recipe
    that sizes and queries were judged by. `unusable`: splits that could not be read at all. `duplicates`:
    None where pictures were not decoded. `examples`: what a page shows."""

    root: Path
    format: str
    formats: tuple[str, ...]
    view: RecipeView
    splits: tuple[SplitReport, ...]
    unusable: tuple[Problem, ...]
    duplicates: tuple[DuplicateGroup, ...] | None
    remarks: tuple[Remark, ...]
    examples: tuple[Example, ...] = ()
    forecast: Forecast | None = None

    @property
    def problem_count(self) -> int:
        return len(self.unusable) + sum(len(split.problems) for split in self.splits)

    @property
    def shown_split(self) -> SplitReport:
        """The one to train on; without it the first one."""
        name = training_name([split.name for split in self.splits])
        return next((split for split in self.splits if split.name == name), self.splits[0])

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON. Problems are counted by kind, with the first examples of each."""
        return {
            "root": str(self.root),
            "format": self.format,
            "formats": list(self.formats),
            "view": self.view.to_dict(),
            "splits": [split.to_dict(self.view) for split in self.splits],
            "unusable": by_kind(self.unusable),
            "duplicates": None if self.duplicates is None else [group.to_dict() for group in self.duplicates],
            "remarks": [asdict(remark) for remark in self.remarks],
            "forecast": None if self.forecast is None else self.forecast.to_dict(),
        }

    def class_rows(self) -> list[tuple[int | None, int, str, list[int | None]]]:
        """(row of the class head, category id, name, boxes of each split; None if a split has no such
        class). Rows are those of the split to train on; classes of other splits have none."""
        rows = {(row.category_id, row.name): row.index for row in self.shown_split.classes}
        counts = [{(row.category_id, row.name): row.boxes for row in split.classes} for split in self.splits]
        others = sorted({key for split in counts for key in split} - set(rows))
        return [
            (rows.get(key), *key, [split.get(key) for split in counts])
            for key in (*sorted(rows, key=rows.__getitem__), *others)
        ]


def by_kind(problems: Sequence[Problem]) -> dict[str, Any]:
    """Kind → count and first examples, the most frequent kind first."""
    return {
        kind: {
            "count": len(found),
            "examples": [{"where": item.where, "message": item.message} for item in found[:EXAMPLES]],
        }
        for kind, found in grouped(problems).items()
    }


def grouped(problems: Sequence[Problem]) -> dict[str, list[Problem]]:
    kinds: dict[str, list[Problem]] = {}
    for problem in problems:
        kinds.setdefault(problem.kind, []).append(problem)
    return dict(sorted(kinds.items(), key=lambda item: -len(item[1])))

"""The results of an inspection as plain dataclasses for the terminal, JSON and the page."""

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

EXAMPLES = 3  # examples of each kind of problem


@dataclass(frozen=True)
class ClassCount:
    """The number of boxes of a class in a split.

    Attributes:
        index: the class index in the split. In the split to train on, it is also the class's row in the
            model's class head.
        category_id: the data set's own id of the class.
        boxes: the number of boxes of the class, without crowds.
        images: the number of images with at least one of these boxes.
    """

    index: int
    name: str
    category_id: int
    boxes: int
    images: int


@dataclass(frozen=True)
class SplitReport:
    """The measurements for one split.

    Attributes:
        source: the file or folder of the annotations.
        images: the number of images.
        boxes: the number of all objects, including crowds and difficult ones.
        crowds: the number of crowd regions, which are used neither in training nor in the metrics.
        difficult: the number of objects that Pascal VOC's metric ignores.
        empty_images: the number of images without any object.
        objects_mean, objects_max: the mean and maximum number of objects per image, without crowds, because
            a model needs no queries for crowds.
        over_queries: the number of images with more objects than the recipe has queries.
        small, medium, large: the shares of objects, without crowds, whose COCO area in pixels is below 32²,
            from 32² to below 96², and at least 96²; 0 if there are no objects.
        sizes: the sizes of the objects, without crowds, as the model sees them.
        smallest_image, largest_image: the (height, width) of the images with the fewest and the most pixels.
        classes: the numbers of boxes of all classes of the split, by class index.
        images_checked: how much of the image files was read: `decode` (everything), `headers` or `no`.
        rotated: the number of images that are turned according to EXIF when they are opened.
        not_rotated: the number of images whose EXIF orientation is ignored, because turning them would not
            lead to their annotated size.
        problems: the problems of the annotations, then those of the image files, except the ones that are
            already listed for an earlier split.
        notes: harmless observations, except the ones that are already listed for an earlier split.
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
    """A remark that states a fact about the data set and, if possible, recommends what to do.

    `kind` is a short name for remarks of this kind, such as `rare-classes`, and `message` is the text.
    """

    kind: str
    message: str


@dataclass(frozen=True)
class Forecast:
    """The cost of training on this machine, measured on a few updates (training/forecast.py).

    Attributes:
        device: the name of the GPU, or a phrase such as "the CPU (2 threads)".
        batch_size: the number of images of an update.
        update_seconds, update_spread: the mean duration of an update and its standard deviation, in seconds.
        update_cpu_seconds: the mean processor time of an update in seconds, summed over all threads.
        updates_per_epoch: the number of updates in a pass over the training split.
        evaluation_seconds: the estimated duration of evaluation per epoch, in seconds. This is the duration
            of one evaluation, extrapolated from a few images, divided by the number of epochs between two
            evaluations (`train.evaluate_every`). It is 0 if there is no validation split.
        epochs: the number of epochs of the recipe.
        peak_bytes: the peak memory of the training process, which includes an update with a batch of the
            largest pictures, plus the peak memory of its loader processes.
        gpu_bytes: the peak GPU memory in bytes; 0 on a CPU.
        largest_batch: the (height, width) of the batch of the largest pictures, in pixels.
        threads: the number of PyTorch's threads.
        load: the mean number of processes that ran or waited for one of the `cores` processor cores in the
            last minute of the measurement (the load average); 0 on Windows.
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
    def slowdown(self) -> float:
        """An upper bound on the factor by which other programs slow down an update.

        On a CPU, the bound is the duration of an update, divided by its processor time per thread, and at
        least 1. On a GPU, it is 1.
        """
        if self.gpu_bytes:
            return 1.0
        return max(1.0, self.update_seconds / (self.update_cpu_seconds / self.threads))

    @property
    def is_disturbed(self) -> bool:
        """True if other programs clearly slowed down the measured updates.

        This is assumed if both the load per core and the `slowdown` are above 1.5.
        """
        return self.load > 1.5 * self.cores and self.slowdown > 1.5

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
    """The result of an inspection.

    Attributes:
        root: the data set's folder or file, as it was given.
        format: the layout that was read: coco, voc or yolo.
        formats: all layouts in which the data set exists.
        view: the recipe's settings, by which sizes and queries were judged.
        unusable: a problem for each split that could not be read at all.
        duplicates: the groups of duplicate pictures; None if the pictures were not decoded.
        remarks: facts and recommendations on the data set, the most serious first.
        examples: the pictures that a page shows.
        forecast: the cost of training; None if it has not been measured.
    """

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
        """The split to train on, or the first one if there is none."""
        name = training_name([split.name for split in self.splits])
        return next((split for split in self.splits if split.name == name), self.splits[0])

    def to_dict(self) -> dict[str, Any]:
        """Convert the report, except its pictures, to JSON values.

        Problems are counted by kind, with the first examples of each kind.
        """
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
        """List the classes as (row of the class head, category id, name, boxes of each split).

        The row of the class head comes from `shown_split`; it is None for classes that only other splits
        list. Such classes come last, sorted by id and name; the others are sorted by their row. The number of
        boxes in a split is None if the split does not list a class with this id and name.
        """
        rows = {(row.category_id, row.name): row.index for row in self.shown_split.classes}
        counts = [{(row.category_id, row.name): row.boxes for row in split.classes} for split in self.splits]
        others = sorted({key for split in counts for key in split} - set(rows))
        return [
            (rows.get(key), *key, [split.get(key) for split in counts])
            for key in (*sorted(rows, key=rows.__getitem__), *others)
        ]


def by_kind(problems: Sequence[Problem]) -> dict[str, Any]:
    """Return `count` and `examples` of each kind of problem as JSON values, the most frequent kind first.

    The examples are the first `EXAMPLES` problems of the kind, each as its location (`where`) and `message`.
    """
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

"""Inspect a data set: read every split, check every picture, count the objects, and add remarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from scipy.spatial import cKDTree

from ..config import RunConfig
from ..config import recipe as recipe_of
from ..data.formats import NOTES, formats_found, list_splits, read_split
from ..data.records import Problem, Split
from ..errors import UserError
from ..evaluation.areas import count_sizes
from .duplicates import Fingerprint, find_duplicates
from .examples import choose_examples
from .facts import ClassCount, DataReport, SplitReport
from .pictures import Images, check_pictures
from .remarks import remarks_on
from .sizes import ObjectSizes, RecipeView, sizes_of

DEFAULT_RECIPE = "deformable_detr_lite"

_SAME_BOX = 0.5  # pixels by which repeated boxes may differ
_NEIGHBOURS = 8  # the nearest boxes, including itself, that each box is compared with


def inspect(
    data: str | Path,
    recipe: str | RunConfig = DEFAULT_RECIPE,
    *,
    format: str = "auto",
    splits: Sequence[str] | None = None,
    images: Images = "decode",
    console: Console | None = None,
) -> DataReport:
    """Read a data set and judge it for the model of a recipe.

    A split that cannot be read at all is reported as unusable, unless `splits` names it or no other split can
    be read.

    Args:
        data: the data set's folder, or a COCO JSON or YOLO YAML file.
        recipe: a recipe's name, or a whole configuration. Its image sizes, feature levels and number of
            queries determine how objects are judged.
        format: `coco`, `voc`, `yolo`, or `auto`.
        splits: the names of the splits to inspect; None means all.
        images: `decode` reads every file (and finds truncated files and duplicates), `headers` reads only the
            files' headers, and `no` reads nothing.
        console: the console on which to show the progress; None shows nothing.

    Raises:
        UserError: if there is no data set, a file that describes it is unusable, `format` is unknown or not
            that of the data, the recipe is unknown or its backbone cannot be built, no split can be read, or
            one that `splits` names cannot.
    """
    config = recipe if isinstance(recipe, RunConfig) else recipe_of(recipe)
    parts, unusable = _read_splits(data, format, splits)
    view = RecipeView.from_config(config)
    reports: list[SplitReport] = []
    prints: list[Fingerprint] = []
    unions = {part.name for part in parts if _is_union(part, parts)}
    originals = [part for part in parts if part.name not in unions]
    for part in parts:
        report, fingerprints = _report(part, view, images, console)
        reports.append(_without_repeated_problems(report, reports))
        if part.name not in unions:
            # Entries for the same file are reported separately.
            prints += {fingerprint.file_name: fingerprint for fingerprint in fingerprints}.values()
    duplicates = find_duplicates(prints) if images == "decode" else None
    return DataReport(
        root=Path(data),
        format=parts[0].format,
        formats=formats_found(data),
        view=view,
        splits=tuple(reports),
        unusable=tuple(unusable),
        duplicates=duplicates,
        remarks=remarks_on(
            originals, [report for report in reports if report.name not in unions], view, duplicates
        ),
        examples=choose_examples(originals, view, duplicates or ()),
    )


def _read_splits(
    data: str | Path, format: str, names: Sequence[str] | None
) -> tuple[list[Split], list[Problem]]:
    """Return the splits, and a problem for each split that cannot be read.

    `names` are the splits to read; None means all.

    Raises:
        UserError: if there is no data set in this format, if no split can be read, or if one that is named in
            `names` cannot.
    """
    found = list_splits(data, format=format) if names is None else tuple(names)
    if not found:
        raise UserError(f"{data} has no splits to inspect: name the folder of a data set.")
    parts: list[Split] = []
    unusable: list[Problem] = []
    errors: list[UserError] = []
    for name in found:
        try:
            parts.append(read_split(data, name, format=format))
        except UserError as error:
            unusable.append(Problem("unusable-split", name, str(error)))
            errors.append(error)
    if not parts or (names is not None and errors):
        raise errors[0]
    return parts, unusable


def _without_repeated_problems(report: SplitReport, others: Sequence[SplitReport]) -> SplitReport:
    """Return the report without the problems and notes of `others`, the reports of earlier splits.

    Splits share problems if they come from one file or have the same images.
    """
    earlier = [problem for other in others for problem in (*other.problems, *other.notes)]
    known = {(problem.kind, problem.where, problem.message) for problem in earlier}

    def new(problems: tuple[Problem, ...]) -> tuple[Problem, ...]:
        return tuple(
            problem for problem in problems if (problem.kind, problem.where, problem.message) not in known
        )

    return replace(report, problems=new(report.problems), notes=new(report.notes))


def _is_union(part: Split, parts: Sequence[Split]) -> bool:
    """Return whether a split is a union of others, as trainval is of train and val.

    A union contains all images of at least two smaller splits. Its pictures are not reported as duplicates of
    the pictures of those splits.
    """
    own = {image.path for image in part.images}
    others = [{image.path for image in other.images} for other in parts if other is not part]
    return sum(other < own for other in others) >= 2


def _report(
    split: Split, view: RecipeView, how: Images, console: Console | None
) -> tuple[SplitReport, tuple[Fingerprint, ...]]:
    images = split.images
    crowd = np.concatenate([image.crowd for image in images])
    area = np.concatenate([image.area for image in images])[~crowd]
    objects = np.array([image.num_objects for image in images])
    # Without objects, every share is 0.
    shares = {size: count / max(1, len(area)) for size, count in count_sizes(area).items()}

    by_pixels = sorted((image.size for image in images), key=lambda size: (size[0] * size[1], size))
    check = check_pictures(split.name, images, how, view.data.max_pixels, console)
    found = (*split.problems, *_listed_twice(split), *_doubled_boxes(split), *check.problems)
    report = SplitReport(
        name=split.name,
        source=split.source,
        images=len(images),
        boxes=len(crowd),
        crowds=int(crowd.sum()),
        difficult=sum(int(image.difficult.sum()) for image in images),
        empty_images=sum(len(image) == 0 for image in images),
        objects_mean=float(objects.mean()),
        objects_max=int(objects.max()),
        over_queries=int(np.count_nonzero(objects > view.num_queries)),
        **shares,
        sizes=ObjectSizes.from_pixels(sizes_of(images, view.data), view.strides[0]),
        smallest_image=by_pixels[0],
        largest_image=by_pixels[-1],
        classes=_class_counts(split),
        images_checked=how,
        rotated=check.rotated,
        not_rotated=check.not_rotated,
        problems=tuple(problem for problem in found if problem.kind not in NOTES),
        notes=tuple(problem for problem in found if problem.kind in NOTES),
    )
    return report, check.fingerprints


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


def _listed_twice(split: Split) -> list[Problem]:
    """Return a problem for each entry of an image file that an earlier entry already lists under another id.

    Several entries for one file are a problem, because each of them has only some of the file's objects.
    """
    first: dict[Path, int] = {}
    problems = []
    for image in split.images:
        if image.path in first:
            message = (
                f"images {first[image.path]} and {image.image_id} are the same file: give it one entry with "
                "all of its objects"
            )
            problems.append(Problem("same-file", image.file_name, message))
        first.setdefault(image.path, image.image_id)
    return problems


def _doubled_boxes(split: Split) -> list[Problem]:
    """Return a problem for each box that repeats an earlier one of its image; crowds are left out.

    A repeated box spoils the metrics, because a model should find the object only once, and thus misses one
    of its boxes.
    """
    problems = []
    for image in split.images:
        boxes = image.boxes_xyxy
        for row in repeated_boxes(boxes, image.labels, np.flatnonzero(~image.crowd)):
            x0, y0, x1, y1 = boxes[row].tolist()
            name = split.classes.name(int(image.labels[row]))
            own = f", annotation {image.annotation_ids[row]}" if split.format == "coco" else ""
            message = f"{name!r} from ({x0:g}, {y0:g}) to ({x1:g}, {y1:g}) is annotated twice: remove one box"
            where = f"{image.file_name}{own}"
            problems.append(Problem("doubled-box", where, message, image.path, (x0, y0, x1, y1)))
    return problems


def repeated_boxes(boxes_xyxy: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> list[int]:
    """Return those of `rows` that repeat an earlier one of `rows`, in ascending order.

    A row repeats another if both have the same label and no coordinate of their boxes differs by more than
    half a pixel. Each box is compared only with its nearest neighbours, so that time and memory do not grow
    with the square of the number of boxes. Therefore, some rows may be missed if more than `_NEIGHBOURS`
    different boxes agree to within half a pixel.

    Args:
        boxes_xyxy: the boxes of all objects, (number of objects, 4), in pixels.
        labels: the labels of all objects, (number of objects,).
        rows: the indices of the objects to compare.
    """
    if len(rows) < 2:
        return []
    # The label is a fifth coordinate, scaled so that boxes with different labels are never neighbours.
    points = np.concatenate([boxes_xyxy[rows], 4 * _SAME_BOX * labels[rows, None]], axis=1)
    points, first, group = np.unique(points, axis=0, return_index=True, return_inverse=True)
    repeated = first[group.reshape(-1)] < np.arange(len(rows))
    reach = np.nextafter(_SAME_BOX, 1)  # cKDTree excludes its upper bound
    count = min(_NEIGHBOURS, len(points))
    _, near = cKDTree(points).query(points, k=range(1, count + 1), p=np.inf, distance_upper_bound=reach)
    # The index len(points) means that there is no further neighbour.
    earlier = np.append(first, len(rows))[near] < first[:, None]
    repeated[first[earlier.any(axis=1)]] = True
    result: list[int] = np.sort(rows[repeated]).tolist()
    return result

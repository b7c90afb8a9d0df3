"""Remarks on a data set: sentences that draw conclusions from its facts and recommend an option or a step.

Values that do not reach the thresholds below are normal, so a remark on them would only distract.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..config import DataConfig
from ..data.formats.losses import most_is_lost
from ..data.formats.splits import is_measured, training_name
from ..data.preprocessing import input_size
from ..data.records import Split
from ..words import count
from .duplicates import DuplicateGroup
from .facts import Remark, SplitReport
from .sizes import RecipeView, sizes_of

MIN_SHARE = 0.05  # larger pictures are recommended if this share of the objects is smaller than a cell
FACTORS = (1.5, 2.0, 3.0, 4.0)  # multiples of the recipe's sizes to try
EVALUATED = 100  # detections per picture that AR100 counts
RARE = 20  # a class with fewer training boxes is rare
IMBALANCE = 20  # ratio of the boxes of the most frequent class to those of the rarest
MANY_EMPTY = 0.5
STRIP = 0.7  # a picture is too wide if resizing makes it shorter than this share of the recipe's short side
SHOWN = 5
MOSTLY_LOST = "mostly-lost"  # the kind of a remark that comes before everything else

_BACKGROUND = re.compile(r"\W*_*\W*(background|bg|no[ _-]?object|unlabell?ed)\W*_*", re.IGNORECASE)


@dataclass(frozen=True)
class _Data:
    splits: Sequence[Split]
    reports: Sequence[SplitReport]
    view: RecipeView

    @property
    def training(self) -> SplitReport | None:
        name = training_name([report.name for report in self.reports])
        return next((report for report in self.reports if report.name == name), None)

    @property
    def validation(self) -> SplitReport | None:
        return next((report for report in self.reports if is_measured(report.name)), None)


def remarks_on(
    splits: Sequence[Split],
    reports: Sequence[SplitReport],
    view: RecipeView,
    duplicates: Sequence[DuplicateGroup] | None,
) -> tuple[Remark, ...]:
    """Return the remarks on a data set; their kinds are in a fixed order, the most serious first.

    Args:
        splits: the splits, at least one.
        reports: the measurements for each of the splits.
        view: the settings of the recipe by which the data set is judged.
        duplicates: the groups of duplicate pictures; None if the pictures were not decoded.
    """
    data = _Data(splits, reports, view)
    return (
        *_losses(data),
        *_splits(data),
        *_queries(data),
        *_small_objects(data),
        *_strips(data),
        *_duplicates(duplicates or ()),
        *_classes(data),
        *_names(data),
        *_ids(data),
        *_empty(data),
    )


def _losses(data: _Data) -> Iterator[Remark]:
    for split in data.splits:
        if lost := most_is_lost(split):
            yield Remark(MOSTLY_LOST, lost)


def _splits(data: _Data) -> Iterator[Remark]:
    names = ", ".join(report.name for report in data.reports)
    if data.training is None:
        yield Remark(
            "no-train-split", f"There is no split to train on, only {names}: `train` needs one called train."
        )
    elif data.validation is None:
        yield Remark(
            "no-val-split",
            "There is no val or test split, so `train` cannot determine its best checkpoint, and the model's "
            "accuracy stays unknown: set some images aside for it.",
        )


def _queries(data: _Data) -> Iterator[Remark]:
    queries = data.view.num_queries
    over = sum(report.over_queries for report in data.reports)
    maximum = max(report.objects_max for report in data.reports)
    if over:
        enough = _rounded_up(1.25 * maximum, 50)
        yield Remark(
            "more-objects-than-queries",
            f"{count(over, 'image')} {_have(over)} more objects than the {queries} queries of "
            f"{data.view.recipe} (at most {maximum}): the rest can never be found. "
            f"--model.num_queries {enough} would suffice. With train.fit_to_data, training sets it itself.",
        )
    crowded = sum(image.num_objects > EVALUATED for split in data.splits for image in split.images)
    if crowded:
        yield Remark(
            "more-objects-than-evaluated",
            f"{count(crowded, 'image')} {_have(crowded)} more than {EVALUATED} objects: AR{EVALUATED}, which "
            f"counts the {EVALUATED} best detections of an image, cannot reach 1; AP counts more of them. "
            f"`predict --max-detections {_rounded_up(maximum, 50)}` lists as many.",
        )


def _small_objects(data: _Data) -> Iterator[Remark]:
    view, settings = data.view, data.view.data
    images = [image for split in data.splits for image in split.images]
    stride = view.strides[0]

    def share(tried: DataConfig) -> float:
        pixels = sizes_of(images, tried)
        return float(np.mean(pixels < stride)) if len(pixels) else 0.0

    now = share(settings)
    if now < MIN_SHARE:
        return
    fact = (
        f"{now:.0%} of the objects are smaller than a cell of the finest level ({stride} pixels) after "
        f"resizing to {settings.image_size}"
    )
    native = float(np.median([min(image.size) for image in images]))
    aspect = float(np.quantile([max(image.size) / min(image.size) for image in images], 0.95))

    def pixels(tried: DataConfig) -> int:
        return sum(math.prod(input_size(image.size, tried)) for image in images)

    tried = []
    for factor in FACTORS:
        image_size = _to_multiple(factor * settings.image_size)
        if image_size > native * 1.1:  # enlarged pictures show nothing more
            break
        max_size = _to_multiple(max(factor * settings.max_size, aspect * image_size + 8))
        larger = replace(settings, image_size=image_size, max_size=max_size)
        tried.append((share(larger), factor, larger))
        if tried[-1][0] < MIN_SHARE:
            break
    better = [entry for entry in tried if entry[0] < 0.7 * now]
    if better:
        then, factor, larger = better[-1]
        times = pixels(larger) / pixels(settings)
        sizes = ",".join(str(_to_multiple(factor * size)) for size in settings.train_sizes)
        change = (
            f"--data.image_size {larger.image_size} --data.max_size {larger.max_size} "
            f"--data.train_sizes '[{sizes}]' would make it {then:.0%}, with {times:.1f} times as many "
            "pixels, which cost time and memory. With train.fit_to_data, training enlarges the pictures "
            "itself if half of the objects are small."
        )
    else:
        change = (
            f"the pictures themselves (short side {native:.0f} pixels) have little more to show, so cut them "
            "into tiles or take closer pictures."
            if native > settings.image_size
            else "the pictures themselves are no larger, so closer or sharper pictures are needed."
        )
    yield Remark("small-objects", f"{fact}: {change}")


def _strips(data: _Data) -> Iterator[Remark]:
    settings = data.view.data
    short = []
    for split in data.splits:
        for image in split.images:
            side = min(input_size(image.size, settings))
            if side < STRIP * settings.image_size:
                short.append((side, image))
    if not short:
        return
    side, image = min(short, key=lambda entry: entry[0])
    needed = _to_multiple(settings.image_size * max(image.size) / min(image.size) + 8)
    height, width = image.size
    yield Remark(
        "wide-images",
        f"{count(len(short), 'image')} {_are(len(short))} so long that max_size {settings.max_size} makes "
        f"the short side less than {settings.image_size}: {image.file_name} of {width} x {height} is reduced "
        f"to {side} pixels. --data.max_size {needed} would keep {settings.image_size}.",
    )


def _duplicates(groups: Sequence[DuplicateGroup]) -> Iterator[Remark]:
    across = [group for group in groups if len(group.splits) > 1]
    within = [group for group in groups if len(group.splits) == 1]
    if across:
        splits = sorted({split for group in across for split in group.splits})
        yield Remark(
            "duplicates-across-splits",
            f"{count(len(across), 'picture')} {_are(len(across))} in more than one of {', '.join(splits)} "
            f"({_pair(across[0])}), so the metrics would reward memorised pictures. Keep each picture in one "
            "split.",
        )
    if within:
        extra = sum(len(group.members) - 1 for group in within)
        yield Remark(
            "duplicates-within-split",
            f"{count(extra, 'picture')} {_are(extra)} repeated in the same split ({_pair(within[0])}). "
            "Repeated pictures are harmless if their boxes agree, but they count twice.",
        )


def _pair(group: DuplicateGroup) -> str:
    (split, name), (other_split, other) = group.members[0], group.members[-1]
    return f"{split}: {name} = {other_split}: {other}"


def _classes(data: _Data) -> Iterator[Remark]:
    training, validation = data.training, data.validation
    totals: dict[str, int] = {}
    for report in data.reports:
        for row in report.classes:
            totals[row.name] = totals.get(row.name, 0) + row.boxes
    unused = [name for name, boxes in totals.items() if boxes == 0]
    if unused:
        yield Remark(
            "classes-never-used",
            f"{count(len(unused), 'class')} {_have(len(unused))} no box in any split: {_shown(unused)}. "
            "Each costs a row of the class head and is never predicted; remove it from the list if it is not "
            "needed.",
        )
    if training is None:
        return
    trained = {row.name: row.boxes for row in training.classes}
    if validation is not None:
        measured = {row.name: row.boxes for row in validation.classes}
        unseen = [name for name, boxes in measured.items() if boxes and not trained.get(name)]
        unmeasured = [name for name, boxes in trained.items() if boxes and not measured.get(name)]
        if unseen:
            yield Remark(
                "classes-missing-in-train",
                f"{count(len(unseen), 'class')} in {validation.name} {_have(len(unseen))} no box in "
                f"{training.name}: {_shown(unseen)}. They cannot be learned and count as never found.",
            )
        if unmeasured:
            yield Remark(
                "classes-missing-in-val",
                f"{count(len(unmeasured), 'class')} in {training.name} {_have(len(unmeasured))} no box in "
                f"{validation.name}: {_shown(unmeasured)}. Their AP cannot be measured.",
            )
        if [row[:3] for row in _table(training)] != [row[:3] for row in _table(validation)]:
            yield Remark(
                "classes-differ",
                f"{training.name} and {validation.name} do not list the same classes: the model has those of "
                f"{training.name}, and `evaluate` matches them by name.",
            )
    used = {name: boxes for name, boxes in trained.items() if boxes}
    rare = [f"{name} ({boxes})" for name, boxes in sorted(used.items(), key=lambda x: x[1]) if boxes < RARE]
    if rare:
        yield Remark(
            "rare-classes",
            f"{count(len(rare), 'class')} {_have(len(rare))} fewer than {RARE} boxes to learn from: "
            f"{_shown(rare)}. Expect a low AP for them.",
        )
    if len(used) > 1:
        most, least = max(used, key=used.__getitem__), min(used, key=used.__getitem__)
        ratio = used[most] / used[least]
        if ratio >= IMBALANCE:
            yield Remark(
                "class-imbalance",
                f"{most} has {ratio:.0f} times as many boxes as {least} ({used[most]:,} and {used[least]:,} "
                f"in {training.name}): look at AP by class (per_class in metrics.json) as well.",
            )


def _table(report: SplitReport) -> list[tuple[int, str, int]]:
    return [(row.index, row.name, row.category_id) for row in report.classes]


def _names(data: _Data) -> Iterator[Remark]:
    names = dict.fromkeys((row.category_id, row.name) for report in data.reports for row in report.classes)
    by_key: dict[str, list[str]] = {}
    for _, name in names:
        variants = by_key.setdefault(re.sub(r"[\s_-]+", "", name).casefold(), [])
        if name not in variants:
            variants.append(name)
    for variants in by_key.values():
        if len(variants) > 1:
            yield Remark(
                "class-names-alike",
                f"The class names {', '.join(map(repr, variants))} differ only in case, spaces or dashes: "
                "for the model they are different classes. Merge them if they mean the same.",
            )
    shared: dict[str, list[int]] = {}
    for report in data.reports:
        ids: dict[str, list[int]] = {}
        for row in report.classes:
            ids.setdefault(row.name, []).append(row.category_id)
        shared |= {name: numbers for name, numbers in ids.items() if len(numbers) > 1}
    for name, numbers in shared.items():
        yield Remark(
            "duplicate-category-name",
            f"The ids {', '.join(map(str, numbers))} share the name {name!r}: for the model these are "
            "different classes with the same name. Merge them.",
        )
    for name in dict.fromkeys(name for _, name in names):
        if not name.strip():
            yield Remark("blank-class-name", f"A class has a blank name ({name!r}): give it one.")
        elif _BACKGROUND.fullmatch(name):
            yield Remark(
                "background-class",
                f"The class {name!r} looks like a background class, which is not needed: images without "
                "objects and unmatched queries teach the background. Remove it from the list of classes.",
            )


def _ids(data: _Data) -> Iterator[Remark]:
    split = data.splits[0]
    if split.format != "coco":
        return
    ids = split.classes.category_ids
    if ids[0] == 0:
        yield Remark(
            "zero-based-ids",
            f"Category ids start at 0 ({split.classes.name(0)}). That works here, because the table of "
            "classes assigns a row of the class head to each id. COCO's own ids start at 1, and some tools "
            "take 0 for the background.",
        )
    if ids[-1] - ids[0] + 1 != len(ids):
        yield Remark(
            "sparse-ids",
            f"Category ids have gaps ({len(ids)} classes with ids {ids[0]} to {ids[-1]}), so the row of the "
            "class head is not the id. predictions.json contains the ids, `labels` in Python the rows.",
        )


def _empty(data: _Data) -> Iterator[Remark]:
    for report in data.reports:
        if report.boxes == 0:
            yield Remark(
                "no-objects",
                f"{report.name} has no objects, so nothing can be learned from it or measured on it: check "
                "that the labels are in the folder that the layout expects.",
            )
        elif report.empty_images / report.images >= MANY_EMPTY:
            yield Remark(
                "many-empty-images",
                f"{report.empty_images / report.images:.0%} of the images of {report.name} have no object. "
                "They teach the model what is not an object and cost as much time as the others; check that "
                "no labels were lost.",
            )


# --- words ------------------------------------------------------------------------------------------------


def _have(number: int) -> str:
    return "has" if number == 1 else "have"


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _rounded_up(value: float, step: int) -> int:
    return int(-(-value // step) * step)


def _to_multiple(value: float) -> int:
    return max(32, round(value / 16) * 16)

"""Adaptation of a run to its data (`train.fit_to_data`): length, warm-up, queries and picture size.

A recipe's epochs, warm-up, queries and picture size suit data sets of the usual kind. With sixteen pictures,
the lite recipe's 24 epochs are 96 updates, fewer than the 100 of its warm-up. Its 100 queries cannot find
the 300 objects of a crowded picture, and cars in an aerial photograph are smaller than two cells of the
finest feature map. Only values that are still the recipe's are adapted, so each of them can be set by hand.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from ..config import RECIPES, DataConfig, RunConfig
from ..data.loading import steps_per_epoch
from ..data.records import Split
from ..inspection.sizes import sizes_of

MINIMUM_UPDATES = 700
WARM_UP_SHARE = 0.1  # the maximum, as a fraction of the updates
QUERIES_PER_OBJECT = 1.5  # for the fullest picture, with a margin for fuller ones and for duplicates
QUERY_STEP, MAXIMUM_QUERIES = 50, 900
# The minimum median side in pixels, and the maximum factor for it: of all objects, and of a common class.
OBJECT_SIDE, MAXIMUM_ENLARGEMENT = 27, 2.0
CLASS_SIDE, CLASS_ENLARGEMENT = 34, 1.2
COMMON_CLASS = 0.05  # the minimum share of the objects
SIZE_STEP = 32
_SIZES = ("image_size", "max_size", "train_sizes")


def fit_to_data(config: RunConfig, split: Split, total_batch: int) -> tuple[RunConfig, list[str]]:
    """Adapt the length, warm-up, queries and picture size in `config` to the training images.

    Nothing changes unless `train.fit_to_data` is set and the recipe is in RECIPES.

    Args:
        config: the configuration; only values that are still the recipe's are adapted.
        split: the training images.
        total_batch: the number of images per update.

    Returns:
        The configuration, and lines for the log: one for each change and, if the queries are too few for a
        picture, a warning.
    """
    if not config.train.fit_to_data or config.recipe not in RECIPES:
        return config, []
    config, lines = _with_length(config, steps_per_epoch(len(split), total_batch))
    config, of_queries = _with_queries(config, split)
    config, of_pictures = _with_picture_size(config, split)
    return config, lines + of_queries + of_pictures


def _with_length(config: RunConfig, updates_per_epoch: int) -> tuple[RunConfig, list[str]]:
    usual, settings = RECIPES[config.recipe]().train, config.train
    lines = []
    epochs = math.ceil(MINIMUM_UPDATES / updates_per_epoch)
    if settings.epochs == usual.epochs < epochs:
        every = settings.evaluate_every
        if every == usual.evaluate_every:  # keeps the number of evaluations
            every = math.ceil(every * epochs / usual.epochs)
        settings = replace(settings, epochs=epochs, evaluate_every=every)
        lines.append(
            f"fitted to the data: {epochs} epochs instead of {usual.epochs}, for {MINIMUM_UPDATES} updates, "
            f"with an evaluation every {every} (--train.epochs sets another number)"
        )
    updates = settings.epochs * updates_per_epoch
    warm_up = math.ceil(WARM_UP_SHARE * updates)
    if settings.warmup_steps == usual.warmup_steps > warm_up:
        settings = replace(settings, warmup_steps=warm_up)
        lines.append(
            f"fitted to the data: {warm_up} updates of warm-up instead of {usual.warmup_steps}, "
            f"{WARM_UP_SHARE:.0%} of all {updates} (--train.warmup_steps sets another number)"
        )
    return replace(config, train=settings), lines


def _with_queries(config: RunConfig, split: Split) -> tuple[RunConfig, list[str]]:
    usual, queries = RECIPES[config.recipe]().model.num_queries, config.model.num_queries
    most = split.max_objects
    needed = min(MAXIMUM_QUERIES, math.ceil(QUERIES_PER_OBJECT * most / QUERY_STEP) * QUERY_STEP)
    if queries == usual < needed:
        queries = needed
    lines = []
    if queries != config.model.num_queries:
        lines.append(
            f"fitted to the data: {queries} queries instead of {usual}, because a picture has {most} objects "
            "(--model.num_queries sets another number)"
        )
    if queries < most:
        lines.append(
            f"warning: a picture has {most} objects, but {queries} queries find at most as many: raise "
            "--model.num_queries, or cut the pictures into parts"
        )
    return replace(config, model=replace(config.model, num_queries=queries)), lines


def _with_picture_size(config: RunConfig, split: Split) -> tuple[RunConfig, list[str]]:
    """Raise the picture size if many objects would be small at the recipe's size (see `_enlargement`).

    The new short side is a multiple of SIZE_STEP. Up to rounding, it is at most the median of the pictures'
    short sides, because larger pictures show no more detail. The maximum long side and the sizes for training
    grow by the same factor. Nothing changes if any of these sizes was set by hand.

    Returns:
        The configuration, and a list with a line for the log, which is empty if the size did not change.
    """
    usual, data = RECIPES[config.recipe]().data, config.data
    if any(getattr(data, name) != getattr(usual, name) for name in _SIZES):
        return config, []
    factor, reason = _enlargement(split, usual)
    own_size = float(np.median([min(image.size) for image in split.images]))
    image_size = _to_step(min(usual.image_size * factor, own_size))
    if image_size <= usual.image_size:
        return config, []
    factor = image_size / usual.image_size
    data = replace(
        data,
        image_size=image_size,
        max_size=round(usual.max_size * factor),
        train_sizes=tuple(_to_step(size * factor) for size in usual.train_sizes),
    )
    line = (
        f"fitted to the data: pictures of {image_size} pixels (short side) instead of {usual.image_size}, "
        f"because {reason} (--data.image_size sets another size)"
    )
    return replace(config, data=data), [line]


def _enlargement(split: Split, data: DataConfig) -> tuple[float, str]:
    """Return the factor by which pictures should be larger than `data` makes them, and the reason.

    The factor brings the median side of all objects to OBJECT_SIDE, or that of a common class to CLASS_SIDE,
    whichever is larger, within their maxima. It is less than 1 if all objects are larger.
    """
    sides = sizes_of(split.images, data)
    if not len(sides):
        return 1.0, "there are no objects"
    labels = np.concatenate([image.labels[~image.crowd] for image in split.images])
    found = [(OBJECT_SIDE, MAXIMUM_ENLARGEMENT, "objects", float(np.median(sides)))]
    for label in np.unique(labels):
        of_class = sides[labels == label]
        if len(of_class) >= COMMON_CLASS * len(sides):
            name = f"objects of the class {split.classes.name(int(label))}"
            found.append((CLASS_SIDE, CLASS_ENLARGEMENT, name, float(np.median(of_class))))
    factor, what, median = max(
        (min(side / max(median, 1), maximum), what, median) for side, maximum, what, median in found
    )
    return factor, f"half of the {what} would have at most {median:.0f} pixels"


def _to_step(pixels: float) -> int:
    return round(pixels / SIZE_STEP) * SIZE_STEP

"""`deformable-detr report`, and the report that training writes into its run folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint import Decision
from ..data.formats import list_splits, read_split
from ..data.formats.splits import name_to_measure_on, training_name
from ..data.records import Split
from ..errors import UserError
from ..evaluation import classes_not_in_model, collect_detections, match_classes
from ..extras import import_extra
from ..files import check_output_file, write_text
from ..inference.detector import Detector
from ..inference.loading import load
from ..run_folder.names import REPORT_PAGE
from ..run_folder.reading import read_history
from ..system.environment import environment
from .accuracy import Cut, measure, mistakes
from .content import Content
from .page import report_page
from .pictures import find_misses, show_false_positives

MAX_IMAGES = 24  # images that are traced to find the stage that lost an object
MAX_SHOWN = 6  # pictures of misses, and as many of false positives


def write_report(
    model: str | Path,
    data: str | Path,
    output: str | Path | None = None,
    *,
    split: str | None = None,
    format: str = "auto",
    most_images: int = MAX_IMAGES,
    device: str = "auto",
    max_pixels: int | None = None,
    progress: bool = True,
) -> Path:
    """Measure a model on a split and write the report as one HTML file that loads no other files.

    Args:
        model: anything that `load` accepts except an exported file. For a run folder, the report also shows
            its curves and settings.
        data: the data set's folder, or a COCO JSON or YOLO YAML file.
        output: the file to write. None means `report.html` (`report_SPLIT.html` if a split other than `val`
            is named) in the run folder, or in the current folder if `model` is not a run folder.
        split: the split to measure on. None means `val`, or else `test`; if the data have neither, the report
            covers only training, settings and data.
        format: the layout of the data set: coco, voc, yolo or auto.
        most_images: the maximum number of images in which missed objects are traced to their stages.
        device, max_pixels: as for `load`.
        progress: whether to show a progress bar.

    Returns:
        The path of the file.

    Raises:
        UserError: if the model, the data, an image or a file of the run folder cannot be read, if the model
            and the data have no class in common, if the model is an exported file or its output is not
            finite, if `device`, `max_pixels` or `most_images` is invalid, if `output` cannot be written or
            does not end in .html or .htm, or if matplotlib is not installed.
    """
    import_extra("matplotlib", "figures", "report")
    if most_images < 1:
        raise UserError(f"most_images must be at least 1, not {most_images}.")
    splits = list_splits(data, format=format)
    measured = name_to_measure_on(splits) if split is None else split
    part = None if measured is None else read_split(data, measured, format=format)
    history = read_history(Path(model))
    target = _target(output, Path(model) if history is not None else Path(), split)
    detector = load(model, device, max_pixels=max_pixels)
    train_name = training_name(splits)
    train_split = None if train_name is None else read_split(data, train_name, format=format)
    rows = [] if part is None else collect_detections(detector, part, progress=progress)
    text = report_text(
        detector, rows, part, train_split, model=str(model), data=str(data), most_images=most_images
    )
    write_text(target, text)
    return target


def report_text(
    detector: Detector,
    rows: Sequence[Mapping[str, Any]],
    split: Split | None,
    train_split: Split | None,
    *,
    model: str,
    data: str,
    most_images: int = MAX_IMAGES,
) -> str:
    """Return the report's page as HTML.

    Args:
        detector: the model.
        rows: the result of `collect_detections` on `split`; empty if `split` is None.
        split: the split to measure on, or None to measure nothing.
        train_split: the training split, which the page describes; None if the data have none.
        model, data: the names that the page's commands use. If `model` is a run folder, the page also shows
            its curves and settings.
        most_images: as for `write_report`.

    Raises:
        UserError: if a file of the run folder or an image cannot be read, if the model and the data have no
            class in common, or if the detector comes from an exported file.
    """
    accuracy = misses = None
    kinds: dict[int, Any] = {}
    pictures: tuple[Any, ...] = ()
    if split is not None:
        known = match_classes(detector.classes, split.classes, split.source)
        unknown = classes_not_in_model(detector.classes, split.classes, split.source)
        own = None if detector.decision is None else _own_cut(detector.decision, split, known)
        accuracy = measure(split, rows, unknown, own)
        selection = detector.selection(None if own is not None else float(accuracy.cut.scores[0]))
        # Training requires no extras. Without matplotlib, its report has no pictures and says so.
        max_shown = MAX_SHOWN if find_spec("matplotlib") else 0
        misses = find_misses(detector, split, selection, max_images=most_images, max_shown=max_shown)
        kinds = mistakes(accuracy)
        pictures = show_false_positives(detector, accuracy, max_shown)
    device = next(detector.model.parameters()).device
    return report_page(
        Content(
            detector=detector,
            model=model,
            data=data,
            environment=environment(device),
            history=read_history(Path(model)),
            accuracy=accuracy,
            misses=misses,
            mistakes=Counter(kinds.values()),
            false_positives=pictures,
            train_split=train_split,
        )
    )


def _own_cut(decision: Decision, split: Split, category_ids: Mapping[int, int]) -> Cut:
    """Return the model's own thresholds for the classes of the data.

    `category_ids` maps the model's class indices to the data's category ids. Classes that the model lacks get
    the lowest threshold of the others.
    """
    label_of = {category_id: label for label, category_id in enumerate(split.classes.category_ids)}
    # The model never detects classes that it does not have, so any number will do for them.
    scores = np.full(len(split.classes), min(decision.thresholds[index] for index in category_ids))
    for index, category_id in category_ids.items():
        scores[label_of[category_id]] = decision.thresholds[index]
    return Cut(scores, decision.reason, decision)


def _target(output: str | Path | None, folder: Path, split: str | None) -> Path:
    if output is None:
        return folder / (REPORT_PAGE if split in (None, "val") else f"report_{split}.html")
    target = check_output_file(output)
    if target.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--output {target} must end in .html.")
    return target

"""Evaluate a model on a data set, for `deformable-detr evaluate` and after each epoch of training.

pictures → detections (`collect_detections`) → numbers (average_precision.py) → metrics.json

The composition of a batch matters a little, because padding changes the inputs of convolutions and attention
at the border. With `exact` batching, only pictures that are resized to the same size share a batch, so that
nothing is padded, and a detection does not depend on the other pictures. With `padded` batching, consecutive
pictures are padded together, as in the authors' evaluation (specification §7.2). The metrics record the
batching.

Several processes (torchrun, or an existing process group) share the batches; their number changes neither the
batches nor the result.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import torch.distributed
from rich.console import Console
from rich.text import Text
from torch import Tensor

from ..checkpoint import checkpoint_folder, save_decision
from ..checkpoint.decision import Rule
from ..config import DataConfig
from ..data.formats import NOTES, read_split
from ..data.formats.losses import most_is_lost
from ..data.formats.splits import meaning
from ..data.loading import open_annotated
from ..data.records import ImageRecord, Split
from ..data.remote_folder import RemoteFolder, remote_folder
from ..detections import ClassTable, Detections, loose_name, require_finite
from ..errors import UserError
from ..files import check_output_file, write_json
from ..inference.detector import Detector, check_options, equal_shape_batches
from ..inference.loading import load
from ..inference.tta import augmented, tta_scales
from ..progress import progress_bar
from ..system.threads import ahead
from ..words import listed, printable
from .average_precision import (
    Interpolation,
    Row,
    check_voc_options,
    coco_average_precision,
    voc_average_precision,
)
from .limits import usual_limit
from .processes import gathered, own_device, process_group, rank_and_count
from .thresholds import check_rule, choose_thresholds

Metric = Literal["coco", "voc"]
Batching = Literal["exact", "padded"]
Result = TypeVar("Result")

# Two threads decode and resize while the model works on earlier batches; at most two batches wait.
NUM_READERS = 2
MAX_NAMES = 5  # the maximum number of class names that a message lists


def evaluate(
    model: Detector | str | Path,
    data: Split | str | Path,
    *,
    split: str | None = None,
    format: str = "auto",
    strict: bool = False,
    images: str | None = None,
    cache_gb: float = DataConfig.cache_gb,
    cache_folder: str = DataConfig.cache_folder,
    metric: Metric = "coco",
    batching: Batching = "exact",
    batch_size: int = 2,
    threshold: float = 0.0,
    max_detections: int | None = None,
    output: str | Path | None = None,
    device: str = "auto",
    max_pixels: int | None = None,
    iou_threshold: float = 0.5,
    interpolation: Interpolation = "every_point",
    plus_one: bool = False,
    tta: bool | Sequence[float] = False,
    decide: Rule | None = None,
    console: Console | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Detect objects in every image of a split and score the detections.

    The model's classes are matched with those of the data by name; their ids may differ. Classes that only
    the model has are left out. Classes that only the data have cannot be detected, and lower the mean.

    Args:
        model: a `Detector`, or anything that `deformable_detr.load` takes.
        data: a data set's folder, a COCO JSON or YOLO YAML file, or a `Split`. With a `Split`, `split`,
            `format`, `strict`, `images` and the settings of the cache are ignored.
        split: the split's name; None means the split on which training measures, `val` or else `test`.
        format: the layout of the data set: coco, voc, yolo or auto.
        strict: True to refuse a folder with problems; False to print the number of problems.
        images, cache_gb, cache_folder: a URL with the pictures, and the settings of their cache, as in the
            fields of `DataConfig`.
        metric: `coco`, or `voc` with the options `iou_threshold`, `interpolation` and `plus_one` of
            `voc_average_precision`.
        batching: `exact` or `padded`. With `exact`, only pictures that are resized to the same size share a
            batch, so that a detection does not depend on other pictures. With `padded`, consecutive pictures
            are padded together, as in the authors' evaluation.
        batch_size: the maximum number of images per batch and process.
        threshold: detections with a lower score are left out. Use 0 for average precision, which needs all.
        max_detections: the maximum number per image, over all classes; None means 100 or, if an image has
            more than 100 objects, twice the largest number of objects in any image.
        output: the JSON file for the result, written whole or not at all, by the first process.
        device: the device on which to load `model`; "auto" gives each process its own GPU. It must be "auto"
            if `model` is a `Detector`, which stays on its device.
        max_pixels: the maximum number of pixels (width times height) of a picture, as for `load`; it must be
            None if `model` is a `Detector`.
        tta: True for test-time augmentation (tta.py) with flips and the usual scales, or the scales to use
            with flips. Only pictures of equal resized shape then share a batch, as with `exact`.
        decide: the rule that chooses the minimum score of each class, `best_f1` or a required precision. The
            scores are saved in `model`, which must be a run folder or checkpoint folder, and are then used by
            `predict` and all other commands. None means that no scores are chosen.
        console: the console for notes; None means standard error.
        progress: True to show a progress bar on the console if it is a terminal.

    Returns:
        The content of metrics.json, the same in every process: the numbers of `coco_average_precision` (or
        `voc_average_precision`) with `per_class`, and `metric`, its options, `split`, `images`, `batching`,
        `batch_size`, `threshold`, `max_detections`, `classes_not_in_model` and `seconds`; with `tta` also
        `tta_scales`; with `decide` also `decision`, which is None if no detection is right.

    Raises:
        UserError: if an option is wrong, the model or the data cannot be read or used, they have no class in
            common, the model's output is not finite, or `output` or the thresholds cannot be written.
    """
    _check_choices(metric, batching, tta)
    check_voc_options(iou_threshold, interpolation)
    check_options(threshold, max_detections, batch_size)
    if not isinstance(model, str | Path):
        _check_loaded(device, max_pixels)
    folder = None if decide is None else _folder_to_decide_in(model, decide, tta)
    with process_group():
        rank, num_processes = rank_and_count()
        console = _console(console, rank)
        if output is not None and rank == 0:
            check_output_file(output)
        if isinstance(model, str | Path):
            model = load(model, device=own_device(device, num_processes), max_pixels=max_pixels)
        scales = tta_scales(tta)
        detector = augmented(model, scales) if scales else model
        remote = remote_folder(images, cache_gb, cache_folder)
        part = data if isinstance(data, Split) else _read(data, split, format, strict, remote, console)
        if len(part) == 0:
            raise UserError(f"{part.source}: the split {part.name} has no images to evaluate on.")
        unknown = classes_not_in_model(detector.classes, part.classes, part.source)
        if unknown:
            note = f"The model does not have {listed(unknown, MAX_NAMES)}, which count as never found."
            console.print(Text(printable(note), "yellow"))

        limit = usual_limit(part)
        max_detections = limit if max_detections is None else max_detections
        start = time.perf_counter()
        rows = collect_detections(
            detector,
            part,
            batching=batching,
            batch_size=batch_size,
            threshold=threshold,
            max_detections=max_detections,
            console=console,
            progress=progress,
        )
        voc: dict[str, Any] = {}
        if metric == "voc":
            voc = {"iou_threshold": iou_threshold, "interpolation": interpolation, "plus_one": plus_one}
            numbers = voc_average_precision(ground_truth_of(part), rows, **voc)
        else:
            numbers = coco_average_precision(ground_truth_of(part), rows, limit=limit)
        metrics = {
            **numbers,
            "metric": metric,
            **voc,
            "split": part.name,
            "images": len(part),
            "batching": batching,
            "batch_size": batch_size,
            "threshold": threshold,
            "max_detections": max_detections,
            **({"tta_scales": list(scales)} if scales else {}),
            "classes_not_in_model": unknown,
            "seconds": round(max(gathered(time.perf_counter() - start)), 3),
        }
        if decide is not None and folder is not None:
            metrics["decision"] = _decide(detector, part, rows, decide, folder, rank)
        if output is not None and rank == 0:
            write_json(output, metrics, indent=2)
    return metrics


def _folder_to_decide_in(model: Detector | str | Path, rule: Rule, tta: bool | Sequence[float]) -> Path:
    """Return the checkpoint folder in which the thresholds will be saved.

    Raises:
        UserError: if `rule` is out of range, or `model` or `tta` does not permit thresholds.
    """
    check_rule(rule)
    if isinstance(model, Detector):
        raise UserError("thresholds are saved in a folder: pass the model's folder, not a Detector.")
    if tta_scales(tta):
        raise UserError("thresholds are for prediction without test-time augmentation: leave it out.")
    return checkpoint_folder(model)


def _decide(
    detector: Detector, split: Split, rows: Sequence[Row], rule: Rule, folder: Path, rank: int
) -> dict[str, Any] | None:
    """Choose the model's thresholds, and save them in `folder` if this is the first process (`rank` 0).

    Returns:
        The result of `Decision.by_class`; None (and nothing is saved) if no detection is right.
    """
    category_ids = match_classes(detector.classes, split.classes, split.source)
    decision = choose_thresholds(split, rows, detector.classes, category_ids, rule)
    if decision is None:
        return None
    if rank == 0:
        save_decision(folder, decision)
    return decision.by_class(detector.classes.names)


def _read(
    data: str | Path,
    split: str | None,
    format: str,
    strict: bool,
    images: RemoteFolder | None,
    console: Console,
) -> Split:
    part = read_split(data, split, format=format, strict=strict, images=images)
    if split is None and meaning(part.name) != "val":
        console.print(Text(printable(f"There is no split val: {part.name} is measured."), "yellow"))
    problems = [problem for problem in part.problems if problem.kind not in NOTES]
    if problems:
        note = f"{part.source} has problems: {len(problems)} (`deformable-detr inspect` lists them)."
        console.print(Text(printable(note), "yellow"))
    if lost := most_is_lost(part):
        console.print(Text(printable(f"Warning: {lost}"), "bold red"))
    return part


def collect_detections(
    detector: Detector,
    split: Split,
    *,
    batching: Batching = "exact",
    batch_size: int = 2,
    threshold: float = 0.0,
    max_detections: int | None = None,
    console: Console | None = None,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Detect objects in every image of a split and return COCO results rows with the split's own ids.

    Classes that the split lacks are left out. If a process group exists, every process works on its share of
    the images and returns the rows of all. The options are those of `evaluate`.

    Returns:
        Rows of image_id, category_id, bbox and score, in the order of the split's images, best score first.

    Raises:
        UserError: if an option is out of range, an image cannot be read or does not have its annotated size,
            the model and the data have no class in common, or the model's output is not finite.
    """
    _check_batching(batching)
    check_options(threshold, max_detections, batch_size)
    most = usual_limit(split) if max_detections is None else max_detections
    rank, num_processes = rank_and_count()
    category_ids = match_classes(detector.classes, split.classes, split.source)
    if batching == "exact":
        shapes = [detector.resized_size(image.size) for image in split.images]
        batches = equal_shape_batches(shapes, batch_size)
    else:
        indices = list(range(len(split)))
        batches = [indices[start : start + batch_size] for start in range(0, len(split), batch_size)]
    share = batches[rank::num_processes]

    def read(batch: Sequence[int]) -> list[Tensor]:
        return [
            detector.preprocess(open_annotated(split.images[index], split.source, detector.data.max_pixels))
            for index in batch
        ]

    rows: dict[int, list[dict[str, Any]]] = {}
    with (
        progress_bar(_console(console, rank), progress) as bar,
        ThreadPoolExecutor(NUM_READERS, "read-images") as readers,
    ):
        reads = (partial(read, batch) for batch in share)
        task = bar.add_task(f"evaluating on {split.name}", total=sum(len(batch) for batch in share))
        for batch, pixels in zip(share, ahead(reads, readers, NUM_READERS), strict=True):
            images = [split.images[index] for index in batch]
            with torch.inference_mode():
                found = detector.detect(pixels, [image.size for image in images], max_detections=most)
            for index, image, detections in zip(batch, images, found, strict=True):
                output = f"the model's output for {image.file}"
                require_finite(detections.scores, detections.boxes_xyxy, output)
                rows[index] = _rows(detections.above(threshold), image, category_ids)
            bar.advance(task, len(batch))
    all_rows = {index: found for part in gathered(rows) for index, found in part.items()}
    return [row for index in sorted(all_rows) for row in all_rows[index]]


def _rows(
    detections: Detections, image: ImageRecord, category_ids: Mapping[int, int]
) -> list[dict[str, Any]]:
    """Return COCO results rows with the data set's category ids; classes that it lacks are left out."""
    rows = zip(detections.to_coco(image.image_id), detections.labels.tolist(), strict=True)
    return [{**row, "category_id": category_ids[label]} for row, label in rows if label in category_ids]


def ground_truth_of(split: Split) -> dict[str, Any]:
    """Return a split of any layout as a COCO dictionary with the data set's own ids.

    Difficult objects (Pascal VOC) are marked as such. COCO's metric ignores the mark and counts them like
    any other.
    """
    return {
        "images": [
            {
                "id": image.image_id,
                "file_name": image.file_name,
                "height": image.size[0],
                "width": image.size[1],
            }
            for image in split.images
        ],
        "categories": [
            {"id": category_id, "name": name}
            for name, category_id in zip(split.classes.names, split.classes.category_ids, strict=True)
            if name is not None
        ],
        "annotations": [
            {
                "id": int(image.annotation_ids[n]),
                "image_id": image.image_id,
                "category_id": split.classes.category_ids[image.labels[n]],
                "bbox": [float(x0), float(y0), float(x1 - x0), float(y1 - y0)],
                "area": float(image.area[n]),
                "iscrowd": int(image.crowd[n]),
                "difficult": int(image.difficult[n]),
            }
            for image in split.images
            for n, (x0, y0, x1, y1) in enumerate(image.boxes_xyxy)
        ],
    }


def match_classes(model: ClassTable, data: ClassTable, source: Path) -> dict[int, int]:
    """Match the model's classes with the data's by name.

    Names with the same spelling are matched first, then those that differ only in case or in leading or
    trailing spaces. Each class is matched at most once.

    Args:
        source: the path of the data, for the message.

    Returns:
        The data's category ids by the model's class indices, without the classes that the data lack.

    Raises:
        UserError: if there is no class in common.
    """
    matched: dict[int, int] = {}
    for key in (str, loose_name):
        free: dict[str, deque[int]] = defaultdict(deque)
        for name, category_id in zip(data.names, data.category_ids, strict=True):
            if name is not None and category_id not in matched.values():
                free[key(name)].append(category_id)
        for index, name in enumerate(model.names):
            if name is not None and index not in matched and free[key(name)]:
                matched[index] = free[key(name)].popleft()
    if not matched:
        raise UserError(
            f"the model and {source} have no class in common: the model has {_named(model)}, the "
            f"data have {_named(data)}; evaluate on data with the model's class names."
        )
    return matched


def _check_batching(batching: str) -> None:
    if batching not in ("exact", "padded"):
        raise UserError(f"batching must be exact or padded, not {batching}.")


def _check_choices(metric: str, batching: str, tta: bool | Sequence[float]) -> None:
    if metric not in ("coco", "voc"):
        raise UserError(f"metric must be coco or voc, not {metric}.")
    _check_batching(batching)
    if tta and batching == "padded":
        raise UserError("batching padded has no effect on tta, whose views are never padded: leave it out.")


def _check_loaded(device: str, max_pixels: int | None) -> None:
    """Raise a `UserError` if an option of `load` is set for a detector that is already loaded."""
    if device != "auto":
        raise UserError(f"device={device} cannot move a detector that is already loaded: pass it to load().")
    if max_pixels is not None:
        raise UserError("max_pixels cannot change a detector that is already loaded: pass it to load().")


def classes_not_in_model(model: ClassTable, data: ClassTable, source: Path) -> list[str]:
    """Return the names of the data's classes that the model does not have.

    Raises:
        UserError: if they have no class in common; the message names `source`.
    """
    known = set(match_classes(model, data, source).values())
    return [
        name
        for name, category_id in zip(data.names, data.category_ids, strict=True)
        if name is not None and category_id not in known
    ]


def _named(classes: ClassTable) -> str:
    return listed([name for name in classes.names if name is not None], MAX_NAMES)


def _console(console: Console | None, rank: int) -> Console:
    """Return `console` (None means standard error), or a silent console if this is not the first process."""
    if rank > 0:
        return Console(quiet=True)
    return console or Console(stderr=True)

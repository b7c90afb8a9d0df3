"""Predict: pictures in folders and globs to annotated pictures and `predictions.json`.

Three threads, so that the model waits for no file: one decodes and resizes what comes next, one runs the
model (whose arithmetic has threads of its own), one draws and writes what was found.
"""

from __future__ import annotations

import glob
import json
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from torch import Tensor

from .data.images import IMAGE_SUFFIXES
from .detector import Detector, check_options, load, read_picture
from .errors import UserError
from .files import write_text
from .structures import Detections

PREDICTIONS_FILE = "predictions.json"
WINDOW = 32  # pictures that may wait for others of their shape
READ_AHEAD = 2  # batches that are read while the model works
WRITE_BEHIND = 8  # pictures that may wait to be drawn
Item = TypeVar("Item")


@dataclass(frozen=True)
class PredictionReport:
    """`pictures`: annotated files. `predictions`: the JSON file, COCO results rows plus `file_name` and
    `category_name`. `detections`: how many. `skipped`: (path, reason) of inputs that could not be read."""

    pictures: tuple[Path, ...]
    predictions: Path
    detections: int
    skipped: tuple[tuple[Path, str], ...]


def predict(
    model: str | Path | Detector,
    sources: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    threshold: float = 0.5,
    max_detections: int = 100,
    batch_size: int = 4,
    device: str = "auto",
    dtype: str | None = None,
) -> PredictionReport:
    """Find objects in image files, draw them, and list them.

    Args:
        model: a `Detector`, or anything that `load` takes.
        sources: image files, folders (searched whole), globs.
        output: a folder; pictures keep their names, `predictions.json` stands beside them.
        threshold: detections below this score are left out.

    Raises:
        UserError: no image found, or none readable (some unreadable ones are skipped and reported); an
            option out of range; an output that cannot be written, or where a source would be overwritten.
    """
    check_options(threshold, max_detections, batch_size)
    paths = find_images([sources] if isinstance(sources, str | Path) else sources)
    names = _output_names(paths)
    folder = Path(output)
    _refuse_to_overwrite(paths, [folder / name for name in names])
    detector = model if isinstance(model, Detector) else load(model, device, dtype)
    make_output_folder(folder)

    rows: list[dict[str, Any]] = []
    pictures: list[Path] = []
    skipped: list[tuple[Path, str]] = []
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        drawn: deque[Future[None]] = deque()
        for batch in _ahead(_read(detector, paths, batch_size), reader):
            if isinstance(batch, _Unreadable):
                skipped.append((paths[batch.index], batch.reason))
                continue
            for index, result in _detect(detector, batch, max_detections):
                detections = result.above(threshold)
                target = folder / names[index]
                drawn.append(writer.submit(_draw, detections, target))
                pictures.append(target)
                for row, name in zip(detections.to_coco(index + 1), detections.names, strict=True):
                    rows.append({**row, "file_name": str(paths[index]), "category_name": name})
            while len(drawn) > WRITE_BEHIND:
                drawn.popleft().result()
        while drawn:
            drawn.popleft().result()
    if not pictures:
        path, reason = skipped[0]
        raise UserError(f"none of {len(paths)} images could be read; {path}: {reason}")
    rows.sort(key=lambda row: (row["image_id"], -row["score"]))
    predictions = folder / PREDICTIONS_FILE
    write_text(predictions, json.dumps(rows, indent=1))
    return PredictionReport(tuple(pictures), predictions, len(rows), tuple(skipped))


def make_output_folder(folder: Path) -> None:
    """Make a folder to write to, or say before any work is done why it cannot be one."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder} is a file: name a folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--output {folder} cannot be made ({error.strerror}): name another folder."
        ) from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"--output {folder} is not yours to write in: name another folder.")


def find_images(sources: Sequence[str | Path]) -> list[Path]:
    """Image files of files, folders and globs, each once, folders sorted by name.

    Raises:
        UserError: a source that names nothing.
    """
    paths: list[Path] = []
    for source in sources:
        path = Path(source)
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        elif path.exists():
            found = [path]
        else:
            found = sorted(Path(match) for match in glob.glob(str(source), recursive=True))
            found = [p for p in found if p.is_file()]
        if not found:
            raise UserError(
                f"{source}: no image there; name image files, a folder that holds some, or a pattern such "
                "as 'photos/*.jpg'."
            )
        paths += found
    return list(dict.fromkeys(paths))


@dataclass(frozen=True)
class _Unreadable:
    index: int
    reason: str


@dataclass(frozen=True)
class _Batch:
    """Pictures of one shape: `pixels` as the model sees them, `pictures` (H, W, 3) uint8 as they were."""

    indices: Sequence[int]
    pixels: Sequence[Tensor]
    pictures: Sequence[np.ndarray]


def _read(detector: Detector, paths: Sequence[Path], batch_size: int) -> Iterator[_Batch | _Unreadable]:
    """Pictures in batches of equal shape. A batch leaves when it is full, or when the pictures waiting for
    others of their shape have become too many: then the one that began first."""
    waiting: dict[tuple[int, int], list[tuple[int, Tensor, np.ndarray]]] = {}

    def leaving(shape: tuple[int, int]) -> _Batch:
        return _Batch(*zip(*waiting.pop(shape), strict=True))

    for index, path in enumerate(paths):
        try:
            picture = read_picture(path, detector.data.max_pixels)
        except UserError as error:
            yield _Unreadable(index, str(error))
            continue
        shape = detector.resized_size((picture.height, picture.width))
        batch = waiting.setdefault(shape, [])
        batch.append((index, detector.preprocess(picture), np.asarray(picture)))
        if len(batch) == batch_size:
            yield leaving(shape)
        elif sum(map(len, waiting.values())) >= WINDOW:
            yield leaving(next(iter(waiting)))
    while waiting:
        yield leaving(next(iter(waiting)))


def _ahead(items: Iterator[Item], thread: Executor) -> Iterator[Item]:
    """The same items, made by the (one) thread of `thread`, some in advance."""
    coming = deque(thread.submit(next, items, None) for _ in range(READ_AHEAD))
    while (item := coming.popleft().result()) is not None:
        coming.append(thread.submit(next, items, None))
        yield item


def _detect(detector: Detector, batch: _Batch, max_detections: int) -> Iterator[tuple[int, Detections]]:
    sizes = [(picture.shape[0], picture.shape[1]) for picture in batch.pictures]
    found = detector.detect(batch.pixels, sizes, max_detections=max_detections)
    for index, picture, detections in zip(batch.indices, batch.pictures, found, strict=True):
        yield index, detections.with_image(picture)


def _draw(detections: Detections, target: Path) -> None:
    _save_picture(detections.draw(), target)


def _output_names(paths: Sequence[Path]) -> list[str]:
    """A file name for each picture; pictures of equal name get a number."""
    taken: set[str] = set()
    names = []
    for path in paths:
        suffix = path.suffix.lower() if path.suffix.lower() in {".jpg", ".jpeg", ".png", ".webp"} else ".png"
        name, number = f"{path.stem}{suffix}", 2
        while name.lower() in taken:
            name, number = f"{path.stem}_{number}{suffix}", number + 1
        taken.add(name.lower())
        names.append(name)
    return names


def _refuse_to_overwrite(paths: Sequence[Path], targets: Sequence[Path]) -> None:
    originals = {path.resolve() for path in paths}
    for target in targets:
        if target.resolve() in originals:
            raise UserError(
                f"--output {target.parent} holds {target.name}, which the annotated picture would replace: "
                "name another folder."
            )


def _save_picture(picture: Image.Image, target: Path) -> None:
    beside = target.with_name(f".{target.name}")
    picture.save(beside, format=Image.registered_extensions()[target.suffix], quality=92)
    os.replace(beside, target)

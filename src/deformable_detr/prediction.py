"""Predict: pictures in folders and globs to annotated pictures and `predictions.json`."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .data.images import IMAGE_SUFFIXES
from .detector import Detector, check_options, equal_shape_batches, load, read_picture
from .errors import UserError
from .files import write_text
from .structures import Detections

PREDICTIONS_FILE = "predictions.json"
WINDOW = 32  # pictures held at once, to find some of equal shape among them


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
    for start in range(0, len(paths), WINDOW):
        window = range(start, min(start + WINDOW, len(paths)))
        for index, result in _detect(detector, paths, window, max_detections, batch_size):
            if isinstance(result, UserError):
                skipped.append((paths[index], str(result)))
                continue
            detections = result.above(threshold)
            target = folder / names[index]
            _save_picture(detections.draw(), target)
            pictures.append(target)
            for row, name in zip(detections.to_coco(index + 1), detections.names, strict=True):
                rows.append({**row, "file_name": str(paths[index]), "category_name": name})
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


def _detect(
    detector: Detector, paths: Sequence[Path], window: range, max_detections: int, batch_size: int
) -> Iterator[tuple[int, Detections | UserError]]:
    """Detections of the pictures of one window, in the order of batches of equal shape."""
    pictures: dict[int, Image.Image] = {}
    for index in window:
        try:
            pictures[index] = read_picture(paths[index], detector.data.max_pixels)
        except UserError as error:
            yield index, error
    readable = list(pictures)
    shapes = [detector.resized_size((pictures[i].height, pictures[i].width)) for i in readable]
    for batch in equal_shape_batches(shapes, batch_size):
        indices = [readable[i] for i in batch]
        found = detector.detect(
            [detector.preprocess(pictures[i]) for i in indices],
            [(pictures[i].height, pictures[i].width) for i in indices],
            max_detections=max_detections,
        )
        for index, detections in zip(indices, found, strict=True):
            yield index, detections.with_image(np.asarray(pictures[index]))


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

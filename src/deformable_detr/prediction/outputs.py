"""The names and files that `predict` writes: annotated media, predictions.json and report.json."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from ..detections import Detections
from ..errors import UserError
from ..files import replacing, write_json
from ..inference.selection import Selection

PREDICTIONS_FILE = "predictions.json"
PREDICTION_REPORT_FILE = "report.json"
_LONGEST_NAME = 255  # bytes, on all usual file systems
MADE_BY = "deformable-detr predict"  # in report.json: it lets later runs recognise and skip results


@dataclass(frozen=True)
class PictureResult:
    """The result for a picture.

    Attributes:
        source: the file that was read.
        output: the annotated picture.
        image_id: the id of the picture in predictions.json.
        size: (height, width) of the picture.
        detections: the number of detections.
    """

    source: Path
    output: Path
    image_id: int
    size: tuple[int, int]
    detections: int


@dataclass(frozen=True)
class VideoResult:
    """The result for a video or a camera.

    Attributes:
        source: the path of the video, or the name of the camera, such as `webcam:0`.
        output: the annotated video, of `size` (height, width) and `fps` frames per second.
        frames: the number of frames that were processed.
        image_ids: the first and the last id of the frames in predictions.json.
        detections: the number of detections in all frames.
        broken_packets: the number of parts that could not be decoded and were skipped, as players do.
        stopped: True if Ctrl-C stopped the video before its end.
    """

    source: str
    output: Path
    frames: int
    fps: float
    size: tuple[int, int]
    image_ids: tuple[int, int]
    detections: int
    broken_packets: int
    stopped: bool


@dataclass(frozen=True)
class PredictionReport:
    """The results for all inputs.

    Attributes:
        images, videos: the results of the inputs that could be read; pictures in the order of their ids.
        skipped: the inputs that could not be read, as (path or camera, reason).
        left_out: folders with results of `predict` that were found in the sources, but not searched.
        passed_over: files that were found in folders, but do not have the name of a picture or video.
        detections: the number of detections in all pictures and frames.
        selection: the minimum score of each class, and the origin of these scores.
        predictions: the JSON file with COCO results rows plus `file_name` and `category_name`; rows of videos
            also have `frame`, `time` and `track_id`.
        report: report.json, which contains all these results.
        stopped: True if Ctrl-C ended the run.
    """

    images: tuple[PictureResult, ...]
    videos: tuple[VideoResult, ...]
    skipped: tuple[tuple[Any, str], ...]
    left_out: tuple[Path, ...]
    passed_over: tuple[Path, ...]
    detections: int
    selection: Selection
    predictions: Path
    report: Path
    stopped: bool

    @property
    def pictures(self) -> tuple[Path, ...]:
        """The paths of the annotated pictures."""
        return tuple(image.output for image in self.images)


def output_names(stems_and_suffixes: Sequence[tuple[str, str]]) -> list[str]:
    """Return a file name for each (stem, suffix); no two names are equal, even if case is ignored.

    If a name is already taken, `_2`, `_3`, … is added to its stem. Stems are shortened so that names have at
    most 255 bytes.
    """
    taken: set[str] = set()
    names = []
    for stem, suffix in stems_and_suffixes:
        name, number = _fitting(stem, suffix), 2
        while name.lower() in taken:
            name, number = _fitting(stem, f"_{number}{suffix}"), number + 1
        taken.add(name.lower())
        names.append(name)
    return names


def _fitting(stem: str, suffix: str) -> str:
    """Return a file name of at most 255 bytes from the stem, which is shortened if needed, and the suffix."""
    while len(os.fsencode(f"{stem}{suffix}")) > _LONGEST_NAME:
        stem = stem[:-1]
    return f"{stem}{suffix}"


def refuse_to_overwrite(sources: Sequence[Path], targets: Sequence[Path]) -> None:
    originals = {path.resolve() for path in sources}
    for target in targets:
        if target.resolve() in originals:
            raise UserError(
                f"--output {target.parent} contains the source {target.name}, which the annotated file would "
                "replace: name another folder."
            )


def coco_rows(detections: Detections, image_id: int, file_name: str) -> list[dict[str, Any]]:
    """Return a COCO results row for each detection, in their order, with `file_name` and `category_name`."""
    return [
        {**row, "file_name": file_name, "category_name": name}
        for row, name in zip(detections.to_coco(image_id), detections.names, strict=True)
    ]


class RowFile:
    """A writer of a JSON list of COCO results rows, one per line.

    The rows of an image are written as soon as those of all smaller ids have been added, so that memory does
    not grow with the number of images.

    Attributes:
        count: the number of rows that have been written.
        next_id: the id of the image whose rows are written next.
    """

    def __init__(self, file: TextIO):
        self.count = 0
        self.next_id = 1
        self._file = file
        self._waiting: dict[int, list[dict[str, Any]]] = {}
        file.write("[")

    def put(self, image_id: int, rows: list[dict[str, Any]]) -> None:
        """Add the rows of one image.

        Images are written in the order of ids (1, 2, 3, …), so every id must be added, with or without rows.
        Rows are kept in memory until all smaller ids have been added.
        """
        self._waiting[image_id] = rows
        while self.next_id in self._waiting:
            self._write(self._waiting.pop(self.next_id))
            self.next_id += 1

    def _write(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            self._file.write(f"{',' if self.count else ''}\n{json.dumps(row)}")
            self.count += 1

    def finish(self) -> None:
        """Write the rows that are still in memory, and end the list."""
        for image_id in sorted(self._waiting):  # the run was stopped before the ids in between
            self._write(self._waiting[image_id])
        self._file.write("\n]\n" if self.count else "]\n")


@contextmanager
def row_file(path: Path) -> Iterator[RowFile]:
    """Yield a `RowFile` that writes `path`; the file appears only if the block ends without an exception.

    Raises:
        UserError: if the file cannot be written.
    """
    with replacing(path) as draft, draft.open("w", encoding="utf-8") as file:
        rows = RowFile(file)
        yield rows
        rows.finish()


def write_prediction_report(report: PredictionReport) -> None:
    """Write report.json with the results for all inputs.

    Raises:
        UserError: if the file cannot be written.
    """
    content = {
        "made_by": MADE_BY,
        "stopped": report.stopped,
        "detections": report.detections,
        "thresholds": report.selection.by_class,
        "thresholds_from": report.selection.reason,
        "images": [
            {
                "file_name": str(image.source),
                "output": image.output.name,
                "image_id": image.image_id,
                "width": image.size[1],
                "height": image.size[0],
                "detections": image.detections,
            }
            for image in report.images
        ],
        "videos": [
            {
                "file_name": video.source,
                "output": video.output.name,
                "frames": video.frames,
                "fps": video.fps,
                "width": video.size[1],
                "height": video.size[0],
                "first_image_id": video.image_ids[0],
                "last_image_id": video.image_ids[1],
                "detections": video.detections,
                "broken_packets": video.broken_packets,
                "stopped": video.stopped,
            }
            for video in report.videos
        ],
        "skipped": [{"file_name": str(path), "reason": reason} for path, reason in report.skipped],
        "left_out": [str(folder) for folder in report.left_out],
        "passed_over": [str(file) for file in report.passed_over],
    }
    write_json(report.report, content)

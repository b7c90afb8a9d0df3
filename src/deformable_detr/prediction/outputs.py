"""Names and files of what `predict` writes: annotated media, predictions.json, report.json."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from ..errors import UserError
from ..files import replacing, write_json
from ..structures import Detections

PREDICTIONS_FILE = "predictions.json"
PREDICTION_REPORT_FILE = "report.json"
_LONGEST_NAME = 255  # bytes, on all usual file systems
MADE_BY = "deformable-detr predict"  # in report.json: later runs know by it what is no input


@dataclass(frozen=True)
class PictureResult:
    """`size`: (H, W) of the picture. `image_id`: as in predictions.json."""

    source: Path
    output: Path
    image_id: int
    size: tuple[int, int]
    detections: int


@dataclass(frozen=True)
class VideoResult:
    """`frames`: how many were looked at. `output`: the annotated video, of `size` (H, W) and `fps` frames a
    second. `image_ids`: the first and the last of its frames' ids in predictions.json. `broken_packets`:
    parts that could not be decoded and were passed over, as players do. `stopped`: by Ctrl-C, before its
    end."""

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
    """What became of every input.

    `images`, `videos`: those that could be read. `skipped`: (path, reason) of those that could not.
    `left_out`: folders with results of earlier runs, found beside the inputs. `passed_over`: files in folders
    that are neither pictures nor videos by their names. `detections`: how many.
    `predictions`: the JSON file, COCO results rows plus `file_name` and `category_name`, for videos `frame`,
    `time` and `track_id` too. `report`: report.json, which holds all of this. `stopped`: by Ctrl-C.
    """

    images: tuple[PictureResult, ...]
    videos: tuple[VideoResult, ...]
    skipped: tuple[tuple[Any, str], ...]
    left_out: tuple[Path, ...]
    passed_over: tuple[Path, ...]
    detections: int
    predictions: Path
    report: Path
    stopped: bool

    @property
    def pictures(self) -> tuple[Path, ...]:
        """The annotated pictures."""
        return tuple(image.output for image in self.images)


def output_names(stems_and_suffixes: Sequence[tuple[str, str]]) -> list[str]:
    """A file name for each; equal names get a number, and too long ones become shorter."""
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
    """The name, with as much of its stem as a file system takes."""
    while len(os.fsencode(f"{stem}{suffix}")) > _LONGEST_NAME:
        stem = stem[:-1]
    return f"{stem}{suffix}"


def refuse_to_overwrite(sources: Sequence[Path], targets: Sequence[Path]) -> None:
    originals = {path.resolve() for path in sources}
    for target in targets:
        if target.resolve() in originals:
            raise UserError(
                f"--output {target.parent} holds {target.name}, which the annotated one would replace: "
                "name another folder."
            )


def coco_rows(detections: Detections, image_id: int, file_name: str) -> list[dict[str, Any]]:
    """COCO results rows with the names of file and class."""
    return [
        {**row, "file_name": file_name, "category_name": name}
        for row, name in zip(detections.to_coco(image_id), detections.names, strict=True)
    ]


class RowFile:
    """Writes COCO results rows as a JSON list while they come, one to a line: memory does not grow."""

    def __init__(self, file: TextIO):
        self.count = 0
        self.next_id = 1
        self._file = file
        self._waiting: dict[int, list[dict[str, Any]]] = {}
        file.write("[")

    def put(self, image_id: int, rows: list[dict[str, Any]]) -> None:
        """The rows of one image. They are written in the order of ids (1, 2, 3, …), so each id must come,
        with or without rows; what is out of turn waits."""
        self._waiting[image_id] = rows
        while self.next_id in self._waiting:
            self._write(self._waiting.pop(self.next_id))
            self.next_id += 1

    def _write(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            self._file.write(f"{',' if self.count else ''}\n{json.dumps(row)}")
            self.count += 1

    def finish(self) -> None:
        """End the list; of rows that wait for others, all are written."""
        for image_id in sorted(self._waiting):  # stopped before those in between
            self._write(self._waiting[image_id])
        self._file.write("\n]\n" if self.count else "]\n")


@contextmanager
def row_file(path: Path) -> Iterator[RowFile]:
    """predictions.json, which appears whole when the block ends without an exception."""
    with replacing(path) as draft, draft.open("w", encoding="utf-8") as file:
        rows = RowFile(file)
        yield rows
        rows.finish()


def write_report(report: PredictionReport) -> None:
    """report.json: what became of every input."""
    content = {
        "made_by": MADE_BY,
        "stopped": report.stopped,
        "detections": report.detections,
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

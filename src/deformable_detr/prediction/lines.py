"""`predict MODEL -`: one JSON object a line in, one JSON object a line out, for programs that keep a model.

    {"path": "a.jpg", "id": 7}                  a file, or
    {"image": "…base64 of an image file…"}      the picture itself
 →  {"id": 7, "width": 640, "height": 480, "detections": [{"category_id", "category_name", "bbox", "score"}]}
 →  {"id": 7, "error": "there is no image file a.jpg: check the path."}

`bbox` is [x, y, width, height] in pixels. Without `id` an answer carries the number of its line. Each line is
answered before the next is read; a line that is wrong gets an answer with `error`, and the next is read.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..data.images import open_image
from ..errors import UserError
from ..inference.detector import Detector, check_options, load
from ..inference.selection import Selection
from ..inference.tta import augmented_as_requested
from .tiling import Tiling, finder_for

MAX_BYTES = 64 * 2**20  # of a line: a picture of 48 MB in base64
FIELDS = ("path", "image")


@dataclass(frozen=True)
class LinesReport:
    """`answered`: lines with detections. `failed`: lines with an error."""

    answered: int
    failed: int


def answer_lines(
    detector: Detector,
    requests: BinaryIO,
    answer: Callable[[str], None],
    *,
    threshold: float = 0.5,
    classes: Sequence[str] | None = None,
    class_thresholds: Mapping[str, float] | None = None,
    tiling: Tiling | None = None,
    max_detections: int = 100,
    most_bytes: int = MAX_BYTES,
) -> LinesReport:
    """Answer every line of `requests` until it ends; empty lines are passed over.

    Args:
        answer: takes one line of JSON, without its end.
        threshold, classes, class_thresholds, tiling, max_detections: as for `predict`.
        most_bytes: longer lines are refused, without being held in memory.

    Raises:
        UserError: an option out of range, an unknown class.
    """
    check_options(threshold, max_detections, 1)
    selection = Selection.of(detector.classes, threshold, classes, class_thresholds)
    finder = finder_for(detector, selection, max_detections, 1, tiling)

    def found(request: dict[str, Any]) -> dict[str, Any]:
        source = request["path"] if "path" in request else _decoded(request["image"])
        picture = open_image(source, max_pixels=detector.data.max_pixels).picture
        detections = finder.find([finder.prepare(picture)])[0]
        rows = detections.to_coco(0)
        for row, name in zip(rows, detections.names, strict=True):
            del row["image_id"]
            row["category_name"] = name
        return {"width": picture.width, "height": picture.height, "detections": rows}

    answered = failed = number = 0
    while line := requests.readline(most_bytes + 1):
        number += 1
        name: Any = number
        try:
            if len(line) > most_bytes:
                _pass_over(requests, line)
                raise UserError(f"the line has more than {most_bytes:,} bytes: send a smaller picture.")
            if not line.strip():
                continue
            request = _parsed(line)
            name = request.get("id", number)
            content = found(_checked(request))
            answered += 1
        except UserError as error:
            content = {"error": str(error)}
            failed += 1
        answer(json.dumps({"id": name, **content}))
    return LinesReport(answered, failed)


def answer_stdin(
    model: str | Path,
    *,
    device: str = "auto",
    dtype: str | None = None,
    max_pixels: int | None = None,
    tta: bool | Sequence[float] = False,
    **options: Any,
) -> LinesReport:
    """Answer every line of stdin on stdout, and print whatever a library prints on stderr.

    If nobody reads the answers any more, this ends without an error.

    Args:
        model, device, dtype, max_pixels: as `load` takes them.
        tta, options: as for `predict`.
    """
    answers, answered = sys.stdout, 0

    def answer(line: str) -> None:
        nonlocal answered
        print(line, file=answers, flush=True)
        answered += 1

    try:
        with redirect_stdout(sys.stderr):
            detector = augmented_as_requested(load(model, device, dtype, max_pixels=max_pixels), tta)
            return answer_lines(detector, sys.stdin.buffer, answer, **options)
    except BrokenPipeError:  # what is still buffered has no reader, so Python must not flush it at its exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), answers.fileno())
        return LinesReport(answered, 0)


def _pass_over(requests: BinaryIO, line: bytes) -> None:
    """Read on to the end of a line, in pieces."""
    while line and not line.endswith(b"\n"):
        line = requests.readline(2**20)


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        request = json.loads(line, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise UserError(f"the line is no JSON ({error}): send one object a line.") from error
    if not isinstance(request, dict):
        raise UserError(f"the line holds no JSON object but {type(request).__name__}: send {{...}}.")
    return request


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON's")


def _checked(request: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(request.keys() - {"id", *FIELDS})
    if unknown:
        raise UserError(f"there is no field {unknown[0]}: send path or image, and id if you like.")
    given = [name for name in FIELDS if name in request]
    if len(given) != 1:
        raise UserError(f"an object must have one of path and image, not {' and '.join(given) or 'none'}.")
    if not isinstance(request[given[0]], str):
        raise UserError(f"{given[0]} must be a text, not {type(request[given[0]]).__name__}.")
    return request


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"image is not base64 ({error}): encode the bytes of an image file.") from error

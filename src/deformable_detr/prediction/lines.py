"""`predict MODEL -` answers each line of JSON with a line of JSON, for programs that keep a model loaded.

    {"path": "a.jpg", "id": 7}                  a file, or
    {"image": "…base64 of an image file…"}      the picture itself
 →  {"id": 7, "width": 640, "height": 480, "detections": [{"category_id", "category_name", "bbox", "score"}]}
 →  {"id": 7, "error": "there is no image file a.jpg: check the path."}

`bbox` is [x, y, width, height] in pixels. Without an `id`, the answer contains the number of the line,
counted from 1. Each line is answered before the next one is read. Empty lines get no answer.
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
from ..inference.detector import Detector, check_options
from ..inference.loading import load
from .finding import with_views
from .tiling import Tiling, finder_for

MAX_BYTES = 64 * 2**20  # the longest line: a picture of 48 MB in base64
FIELDS = ("path", "image")


@dataclass(frozen=True)
class LinesReport:
    """The number of lines that were answered with detections, and the number answered with an error."""

    answered: int
    failed: int


def answer_lines(
    detector: Detector,
    requests: BinaryIO,
    answer: Callable[[str], None],
    *,
    threshold: float | None = None,
    classes: Sequence[str] | None = None,
    class_thresholds: Mapping[str, float] | None = None,
    tiling: Tiling | None = None,
    max_detections: int | None = None,
    max_bytes: int = MAX_BYTES,
) -> LinesReport:
    """Answer every line of `requests` except empty ones, and return the numbers of successes and failures.

    Args:
        detector: the detector that finds the objects.
        requests: a stream whose lines are JSON objects with `path` (a picture's file) or `image` (a file in
            base64), and optionally `id`.
        answer: a function that is called with each answer, a line of JSON without a line break. It contains
            `id` and either `width`, `height` and `detections`, or `error` if the request is invalid or its
            picture cannot be read. If nobody reads the answers any more, the function must raise a
            BrokenPipeError; then no further lines are read.
        threshold, classes, class_thresholds, tiling, max_detections: as for `predict`.
        max_bytes: the maximum length of a line in bytes, with its line break. Longer lines are answered with
            an error and not held in memory.

    Raises:
        UserError: if an option is out of range or a class is unknown.
    """
    check_options(threshold, max_detections, 1)
    selection = detector.selection(threshold, classes, class_thresholds)
    finder = finder_for(detector, selection, detector.most_detections(max_detections), 1, tiling)

    def detect(request: dict[str, Any]) -> dict[str, Any]:
        source = request["path"] if "path" in request else _decoded(request["image"])
        picture = open_image(source, max_pixels=detector.data.max_pixels).picture
        detections = finder.find([finder.prepare(picture)])[0]
        rows = detections.to_coco(0)
        for row, name in zip(rows, detections.names, strict=True):
            del row["image_id"]
            row["category_name"] = name
        return {"width": picture.width, "height": picture.height, "detections": rows}

    answered = failed = number = 0
    while line := requests.readline(max_bytes + 1):
        number += 1
        name: Any = number
        try:
            if len(line) > max_bytes:
                _skip_rest(requests, line)
                raise UserError(f"the line has more than {max_bytes:,} bytes: send a smaller picture.")
            if not line.strip():
                continue
            request = _parsed(line)
            name = request.get("id", number)
            content = detect(_checked(request))
        except UserError as error:
            content = {"error": str(error)}
        try:
            answer(json.dumps({"id": name, **content}))
        except BrokenPipeError:
            break
        failed += "error" in content
        answered += "error" not in content
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
    """Answer every line of stdin on stdout, and redirect all other output to stderr.

    If the reader of the answers closes the pipe, the function ends without an error.

    Args:
        model, device, dtype, max_pixels: as for `load`.
        tta: as for `predict`.
        options: the keyword arguments of `answer_lines`.

    Raises:
        UserError: if the model cannot be loaded, an option is out of range, or a class is unknown.
    """
    answers = sys.stdout

    def answer(line: str) -> None:
        try:
            print(line, file=answers, flush=True)
        except BrokenPipeError:  # nobody reads what is still buffered, so Python must not flush it at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), answers.fileno())
            raise

    with redirect_stdout(sys.stderr):
        detector = with_views(load(model, device, dtype, max_pixels=max_pixels), tta)
        return answer_lines(detector, sys.stdin.buffer, answer, **options)


def _skip_rest(requests: BinaryIO, line: bytes) -> None:
    """Read and discard the rest of a line that begins with `line`, in pieces of at most 1 MiB."""
    while line and not line.endswith(b"\n"):
        line = requests.readline(2**20)


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        request = json.loads(line, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise UserError(f"the line is not JSON ({error}): send one object per line.") from error
    if not isinstance(request, dict):
        raise UserError(f"the line is not a JSON object but {type(request).__name__}: send {{...}}.")
    return request


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _checked(request: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(request.keys() - {"id", *FIELDS})
    if unknown:
        raise UserError(f"there is no field {unknown[0]}: send path or image, and optionally id.")
    given = [name for name in FIELDS if name in request]
    if len(given) != 1:
        raise UserError(f"an object must have either path or image, not {' and '.join(given) or 'neither'}.")
    if not isinstance(request[given[0]], str):
        raise UserError(f"{given[0]} must be a string, not {type(request[given[0]]).__name__}.")
    return request


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"image is not base64 ({error}): encode the bytes of an image file.") from error

"""Reading a COCO JSON file, and naming the locations of its entries.

Outlines are discarded while parsing; lines are counted only if a message has to name an entry.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...errors import UserError
from .assembly import read_annotation
from .values import whole_number

# COCO's own file has 449 MB, and the largest public ones have a few GB. Reading takes several times the size
# in memory, so a larger file could hardly be used, and is refused.
MAX_BYTES = 8 * 2**30


def load(file: str) -> dict[str, Any]:
    """Return the content of a COCO JSON file without its segmentations.

    Raises:
        UserError: if the file cannot be read, is larger than `MAX_BYTES`, is not JSON, or lacks one of the
            lists images, annotations and categories.
    """
    data = read_annotation(file, MAX_BYTES, "the annotations of a split")
    if not data.strip():
        raise UserError(f"{file} is empty: it should hold COCO's images, annotations and categories.")
    try:
        content = json.loads(data, object_hook=_without_segmentation)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not valid JSON ({error}): fix it or export it again.") from error
    if isinstance(content, list) and content and isinstance(content[0], dict) and "score" in content[0]:
        raise UserError(
            f"{file} holds detections (results with scores), not annotations: name the file of the ground "
            "truth, with images, annotations and categories."
        )
    if not isinstance(content, dict):
        raise UserError(
            f"{file} is not a COCO data set: it holds a {type(content).__name__}, not an object with images, "
            "annotations and categories."
        )
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise UserError(f"{file} is not a COCO data set: it has no list named {key}.")
    return content


def _without_segmentation(entry: dict[str, Any]) -> dict[str, Any]:
    # Outlines are nine tenths of COCO's numbers. They are discarded while parsing, to save memory.
    entry.pop("segmentation", None)
    return entry


class Places:
    """The locations of a COCO file's entries, as messages state them: file, line, and id or position.

    `called` is the name of the file in messages. The line is stated if the file has more than one. Lines are
    counted only when the first entry has to be named, because a file without problems does not need them.
    """

    def __init__(self, file: str, called: str) -> None:
        self.called = called
        self._file = file
        self._lines: dict[str, list[int]] | None = None

    def of(self, key: str, position: int, name: str | None = None) -> str:
        if self._lines is None:
            self._lines = _lines(_decoded(Path(self._file).read_bytes()))
        lines = self._lines.get(key, [])
        line = f":{lines[position]}" if position < len(lines) else ""
        return f"{self.called}{line}, {name or f'{key}[{position}]'}"

    def image(self, row: dict[str, Any], position: int) -> str:
        return self.of("images", position, f"image {whole_number(row['id'])}")

    def annotation(self, row: Any, position: int) -> str:
        own = whole_number(row.get("id")) if isinstance(row, dict) else None
        return self.of("annotations", position, None if own is None else f"annotation {own}")


def _decoded(data: bytes) -> str:
    """Decode bytes as json.loads does: UTF-8, UTF-16 or UTF-32, with or without a byte order mark."""
    return data.decode(json.detect_encoding(data), "surrogatepass")


def _lines(text: str) -> dict[str, list[int]]:
    """Return the line, from 1, on which each entry begins, for each list of the file by its key.

    If the file has only one line, the result is empty.

    Args:
        text: valid JSON with an object at the top level.
    """
    decoder = json.JSONDecoder(object_hook=_without_segmentation)
    lines: dict[str, list[int]] = {}
    if "\n" not in text.strip():
        return lines

    def after_blanks(at: int) -> int:
        while text[at] in " \t\r\n":
            at += 1
        return at

    at, counted, line = after_blanks(0) + 1, 0, 1
    while text[at := after_blanks(at)] != "}":
        key, at = decoder.raw_decode(text, at)
        at = after_blanks(after_blanks(at) + 1)  # skip the colon
        if text[at] == "[":
            starts = lines[key] = []
            at += 1
            while text[at := after_blanks(at)] != "]":
                line, counted = line + text.count("\n", counted, at), at
                starts.append(line)
                at = after_blanks(decoder.raw_decode(text, at)[1])
                at += text[at] == ","
            at += 1
        else:
            at = decoder.raw_decode(text, at)[1]
        at = after_blanks(at)
        at += text[at] == ","
    return lines

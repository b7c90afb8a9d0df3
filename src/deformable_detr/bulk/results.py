"""Read the results of a run as `Detections`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..detections import ClassTable, Detections
from ..errors import UserError
from ..files import read_json
from ..words import one_line
from .libraries import library
from .plan import MANIFEST_FILE


@dataclass(frozen=True)
class Result:
    """The result for a picture.

    Attributes:
        id: the number of the picture in the run, from 1.
        path: the path or URL of the picture, or its name if it is a row of a table.
        detections: the detections; None if the picture could not be read.
        error: the reason why the picture could not be read; None if it could.
    """

    id: int
    path: str
    detections: Detections | None
    error: str | None


def read_results(output: str | Path) -> Iterator[Result]:
    """Yield the results of a complete run in the order of the ids, with one part in memory at a time.

    Raises:
        UserError: if the run is not complete, its manifest is not one of this package, or pyarrow is not
            installed.
        OSError, ValueError: if a part is missing or damaged.
    """
    folder = Path(output)
    if not (folder / MANIFEST_FILE).is_file():
        raise UserError(f"{folder} has no {MANIFEST_FILE}, so its run is not complete: repeat its command.")
    manifest = read_json(folder / MANIFEST_FILE)
    try:
        table = manifest["classes"]
        classes = ClassTable(tuple(table["names"]), tuple(table["category_ids"]))
        parts = [folder / part["name"] for part in manifest["parts"]]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder / MANIFEST_FILE} is not a manifest as bulk prediction writes it "
            f"({one_line(repr(error))}): repeat the run's command with another output folder."
        ) from error
    for part in parts:
        for row in library("pyarrow.parquet").read_table(part).to_pylist():
            yield _result(row, classes)


def _result(row: dict[str, Any], classes: ClassTable) -> Result:
    if row["error"] is not None:
        return Result(row["id"], row["path"], None, row["error"])
    detections = Detections(
        boxes_xyxy=np.array(row["boxes"], np.float32).reshape(-1, 4),
        scores=np.array(row["scores"], np.float32),
        labels=np.array(row["labels"], np.int64),
        category_ids=np.array(row["category_ids"], np.int64),
        names=tuple(map(classes.name, row["labels"])),
        image_size=(row["height"], row["width"]),
    )
    return Result(row["id"], row["path"], detections, None)

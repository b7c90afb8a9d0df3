"""The content of a part, which is a Parquet file with one row per picture, in the order of the ids.

`id` counts the pictures of the run from 1. `width` and `height` are those of the picture in pixels, and
`boxes` are x0, y0, x1, y1 in these pixels, best score first. If a picture could not be read, `error` states
why, and all columns between `path` and `error` are null. Bytes of a path that are not UTF-8 are escaped as in
predictions.json (\\udce4).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..detections import Detections
from .libraries import library
from .plan import pictures_of

_KEY = b"deformable_detr"


@dataclass(frozen=True)
class Counts:
    """The numbers that a part, or a whole run, states about its pictures.

    Attributes:
        pictures: the number of pictures, including those that could not be read.
        detections: the number of detections in all pictures together.
        errors: the number of pictures that could not be read.
    """

    pictures: int
    detections: int
    errors: int


@dataclass(frozen=True)
class Part:
    """The file name, the content (the bytes of a Parquet file) and the counts of a part."""

    name: str
    content: bytes
    counts: Counts


def make_part(name: str, shard: Any, found: Sequence[Detections | str]) -> Part:
    """Return the part of a shard.

    Args:
        name: the file name of the part.
        shard: the pictures, as an Arrow table with the columns `id` and `path`.
        found: for each picture of the shard, its detections or the reason why it could not be read.

    Raises:
        UserError: if pyarrow is not installed.
    """
    arrow, parquet = library("pyarrow"), library("pyarrow.parquet")
    good = [one for one in found if not isinstance(one, str)]
    unread = np.array([isinstance(one, str) for one in found])
    counts = Counts(len(found), sum(map(len, good)), int(unread.sum()))
    lengths = [0 if isinstance(one, str) else len(one) for one in found]
    offsets = arrow.array(np.concatenate([[0], np.cumsum(lengths)]), arrow.int32())
    mask = arrow.array(unread)

    def lists(name: str, kind: Any) -> Any:
        values = [getattr(one, name).reshape(-1) for one in good]
        flat = arrow.array(np.concatenate(values) if values else np.zeros(0), kind)
        if name == "boxes_xyxy":
            flat = arrow.FixedSizeListArray.from_arrays(flat, 4)
        return arrow.ListArray.from_arrays(offsets, flat, mask=mask)

    sizes = [(None, None) if isinstance(one, str) else one.image_size for one in found]
    columns = {
        "id": shard.column("id").combine_chunks(),
        "path": arrow.array([_text(picture.path) for picture in pictures_of(shard)], arrow.string()),
        "width": arrow.array([width for _, width in sizes], arrow.int32()),
        "height": arrow.array([height for height, _ in sizes], arrow.int32()),
        "boxes": lists("boxes_xyxy", arrow.float32()),
        "scores": lists("scores", arrow.float32()),
        "labels": lists("labels", arrow.int64()),
        "category_ids": lists("category_ids", arrow.int64()),
        "error": arrow.array([_text(one) if isinstance(one, str) else None for one in found], arrow.string()),
    }
    table = arrow.table(columns).replace_schema_metadata({_KEY: json.dumps(asdict(counts))})
    sink = arrow.BufferOutputStream()
    parquet.write_table(table, sink, compression="zstd")
    return Part(name, sink.getvalue().to_pybytes(), counts)


def read_counts(file: Path) -> Counts | None:
    """Return the counts that a part's file states, or None if the file does not exist or is damaged.

    Raises:
        UserError: if pyarrow is not installed.
    """
    arrow, parquet = library("pyarrow"), library("pyarrow.parquet")
    try:
        metadata = parquet.read_metadata(file)
        return Counts(**json.loads(metadata.metadata[_KEY]))
    except (OSError, arrow.ArrowException, KeyError, TypeError, ValueError):
        return None


def _text(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode("utf-8")

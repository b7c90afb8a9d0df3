"""Image files to annotated ones.

Three threads, so that the model waits for no file: one decodes and resizes what comes next, one runs the
model (whose arithmetic has threads of its own), one draws and writes what was found.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..errors import UserError
from ..files import replacing
from ..inference.detector import read_picture
from ..structures import Detections
from ..system.threads import Behind, read_ahead
from .finding import Finder, Prepared

WINDOW = 32  # pictures that may wait for others of their shape
DRAWN_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})  # others are written as PNG


@dataclass(frozen=True)
class Unreadable:
    """The picture of this index cannot be read, and why."""

    index: int
    reason: str


@dataclass(frozen=True)
class Found:
    """The detections in the picture of this index, which is being drawn."""

    index: int
    detections: Detections


@dataclass(frozen=True)
class _Batch:
    """Pictures of equal shape."""

    indices: Sequence[int]
    prepared: Sequence[Prepared]


def annotate_pictures(
    finder: Finder, paths: Sequence[Path], targets: Sequence[Path]
) -> Generator[Found | Unreadable]:
    """Draw each picture's detections to its target; say what became of each, in the order of batches. When
    it ends, all is written."""
    with Behind() as behind, ThreadPoolExecutor(1) as reader:
        for batch in read_ahead(_read(finder, paths), reader):
            if isinstance(batch, Unreadable):
                yield batch
                continue
            for index, detections in zip(batch.indices, finder.find(batch.prepared), strict=True):
                behind(draw_picture, detections, targets[index])
                yield Found(index, detections)


def _read(finder: Finder, paths: Sequence[Path]) -> Iterator[_Batch | Unreadable]:
    """Pictures in batches of equal shape. A batch leaves when it is full, or when the pictures waiting for
    others of their shape have become too many: then the one that began first."""
    waiting: dict[tuple[int, int], list[tuple[int, Prepared]]] = {}

    def leaving(shape: tuple[int, int]) -> _Batch:
        return _Batch(*zip(*waiting.pop(shape), strict=True))

    for index, path in enumerate(paths):
        try:
            picture = read_picture(path, finder.detector.data.max_pixels)
        except UserError as error:
            yield Unreadable(index, str(error))
            continue
        shape = finder.shape((picture.height, picture.width))
        batch = waiting.setdefault(shape, [])
        batch.append((index, finder.prepare(picture)))
        if len(batch) == finder.batch_size:
            yield leaving(shape)
        elif sum(map(len, waiting.values())) >= WINDOW:
            yield leaving(next(iter(waiting)))
    while waiting:
        yield leaving(next(iter(waiting)))


def draw_picture(detections: Detections, target: Path) -> None:
    drawn = detections.draw()
    with replacing(target) as draft:
        drawn.save(draft, format=Image.registered_extensions()[target.suffix], quality=92)

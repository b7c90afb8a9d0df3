"""The annotation of image files.

Three threads ensure that the model never waits for a file: one decodes and resizes the next pictures, one
runs the model (whose arithmetic has its own threads), and one draws and writes the detections.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..drawing import encoded
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
    """The index of a picture that cannot be read, and the reason."""

    index: int
    reason: str


@dataclass(frozen=True)
class AnnotatedPicture:
    """The index and the detections of a picture that is being drawn."""

    index: int
    detections: Detections


@dataclass(frozen=True)
class _Batch:
    """Pictures of equal shape."""

    indices: Sequence[int]
    prepared: Sequence[Prepared]


def annotate_pictures(
    finder: Finder, paths: Sequence[Path], targets: Sequence[Path]
) -> Generator[AnnotatedPicture | Unreadable]:
    """Draw each picture's detections, write the result to its target, and yield results batch by batch.

    All files have been written when the generator ends.
    """
    with Behind() as behind, ThreadPoolExecutor(1) as reader:
        for batch in read_ahead(_read(finder, paths), reader):
            if isinstance(batch, Unreadable):
                yield batch
                continue
            for index, detections in zip(batch.indices, finder.find(batch.prepared), strict=True):
                behind(draw_picture, detections, targets[index])
                yield AnnotatedPicture(index, detections)


def _read(finder: Finder, paths: Sequence[Path]) -> Iterator[_Batch | Unreadable]:
    """Read pictures into batches of equal shape.

    A batch is complete when it is full. If too many pictures are waiting for others of their shape, the
    oldest batch is yielded although it is not full.
    """
    waiting: dict[tuple[int, int], list[tuple[int, Prepared]]] = {}

    def take_batch(shape: tuple[int, int]) -> _Batch:
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
            yield take_batch(shape)
        elif sum(map(len, waiting.values())) >= WINDOW:
            yield take_batch(next(iter(waiting)))
    while waiting:
        yield take_batch(next(iter(waiting)))


def draw_picture(detections: Detections, target: Path) -> None:
    content = encoded(detections.draw(), Image.registered_extensions()[target.suffix], quality=92)
    with replacing(target) as draft:
        draft.write_bytes(content)

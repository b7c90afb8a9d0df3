"""The annotation of image files, and the detection of objects in pictures from any source.

Three threads ensure that the model never waits for a file: one decodes and resizes the next pictures, one
runs the model (whose arithmetic uses further threads), and one draws and writes the detections.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from ..detections import Detections
from ..drawing import encoded
from ..errors import UserError
from ..files import replacing
from ..inference.pictures import read_picture
from ..system.threads import Behind, read_ahead
from .finding import Finder, Prepared

WINDOW = 32  # pictures that may wait for others of their shape
DRAWN_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})  # others are written as PNG


@dataclass(frozen=True)
class Unreadable:
    """A picture that cannot be read: its index in the sequence of pictures, from 0, and the reason."""

    index: int
    reason: str


@dataclass(frozen=True)
class FoundPicture:
    """The result for a picture: its index in the sequence of pictures, from 0, and its detections."""

    index: int
    detections: Detections


@dataclass(frozen=True)
class _Batch:
    """Pictures of equal `Finder.shape`, and their indices in the sequence of all pictures, from 0."""

    indices: Sequence[int]
    prepared: Sequence[Prepared]


def annotate_pictures(
    finder: Finder, paths: Sequence[Path], targets: Sequence[Path]
) -> Generator[FoundPicture | Unreadable]:
    """Draw the detections in each of `paths` into the corresponding file of `targets`; yield the results.

    The results are those of `find_in_pictures`; unreadable pictures get no file. All files have been written
    when the generator ends.

    Raises:
        UserError: if a file cannot be written, or the model's output is not finite.
    """
    readers = (partial(read_picture, path, finder.detector.data.max_pixels) for path in paths)
    with Behind() as behind, closing(find_in_pictures(finder, readers)) as pictures:
        for picture in pictures:
            if isinstance(picture, FoundPicture):
                behind(draw_picture, picture.detections, targets[picture.index])
            yield picture


def find_in_pictures(
    finder: Finder, readers: Iterable[Callable[[], Image.Image]]
) -> Generator[FoundPicture | Unreadable]:
    """Yield the detections in each picture that `readers` return, or the reason why it is unreadable.

    The results come batch by batch, and each has the index of its reader. A batch depends only on the order
    and the sizes of the pictures, so that the same pictures always give exactly the same results. A picture
    is unreadable if its reader raises a `UserError`; other exceptions of readers are not caught.

    Raises:
        UserError: if the model's output is not finite.
    """
    with ThreadPoolExecutor(1) as thread:
        for batch in read_ahead(_read(finder, readers), thread):
            if isinstance(batch, Unreadable):
                yield batch
                continue
            for index, detections in zip(batch.indices, finder.find(batch.prepared), strict=True):
                yield FoundPicture(index, detections)


def _read(finder: Finder, readers: Iterable[Callable[[], Image.Image]]) -> Iterator[_Batch | Unreadable]:
    """Yield the pictures in batches of equal shape, and an `Unreadable` for each that cannot be read.

    Shapes are those of `Finder.shape`. A batch is yielded when it has `finder.batch_size` pictures. If WINDOW
    pictures are waiting for others of their shape, the oldest batch is yielded although it is not full.
    """
    waiting: dict[tuple[int, int], list[tuple[int, Prepared]]] = {}

    def take_batch(shape: tuple[int, int]) -> _Batch:
        return _Batch(*zip(*waiting.pop(shape), strict=True))

    for index, read in enumerate(readers):
        try:
            picture = read()
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

"""Conversion of a data set's records to training batches (specification §1.5, §1.6).

A sample is a pure function of (seed, epoch, index), and the order of an epoch is a pure function of (seed,
epoch). Therefore, a resumed run only skips the updates that are already done, and the number of worker
processes does not change the samples. With the same size of the global batch, each update uses the same
images, however they are divided among training processes and micro-batches.

An *update* is one step of the optimiser. It uses a global batch of batch_size · accumulate · world_size
images: each of the `world_size` training processes reads `accumulate` micro-batches of `batch_size` images.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain, count, islice
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from ..config import DataConfig
from ..errors import UserError
from ..structures import ImageBatch, Target
from ..system.allocator import release_free_memory
from ..system.machine import num_cores
from .images import open_image
from .records import ImageRecord, Split
from .seeds import seed_sequence
from .transforms import training_transform

WORKER_TIMEOUT_S = 300  # per batch; the slowest disks and the largest pictures need a tenth of it
Sample = tuple[Tensor, Target]
MicroBatch = tuple[ImageBatch, tuple[Target, ...]]
SampleKey = tuple[int, int]  # (epoch, index into Split.images)


class Samples(Dataset[Sample]):
    """Augmented training samples of a split: `samples[epoch, index]` → (pixels, Target).

    `index` is the image's position in `split.images`. The pixels, (3, h, w) float32, are normalised; (h, w)
    is the size of the augmented picture. Crowd regions are left out, because they do not state where each
    object is. Indexing raises a `UserError` if the picture cannot be read, has more than `config.max_pixels`
    pixels, or does not have the size that its annotation states.
    """

    def __init__(self, split: Split, config: DataConfig, seed: int) -> None:
        self.split = split
        self.config = config
        self.seed = seed
        self.transform = training_transform(config)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: SampleKey) -> Sample:
        epoch, index = key
        record = self.split.images[index]
        picture = open_annotated(record, self.split.source, self.config.max_pixels)
        learned = ~record.crowd
        pixels, boxes_cxcywh, labels = self.transform(
            picture,
            torch.from_numpy(record.boxes_xyxy[learned]),
            torch.from_numpy(record.labels[learned]),
            _generator(self.seed, epoch, index),
        )
        return pixels, Target(labels, boxes_cxcywh, record.image_id)


def open_annotated(record: ImageRecord, source: Path, max_pixels: int) -> Image:
    """Return the picture of a record as upright RGB, or as it is stored if its boxes refer to that.

    `source` is the file or folder of the annotations, for messages.

    Raises:
        UserError: if the picture cannot be read, has more than `max_pixels` pixels, or does not have the size
            that its annotation states.
    """
    opened = open_image(record.file, annotated_size=record.size, max_pixels=max_pixels)
    if not opened.fits:
        (height, width), picture = record.size, opened.picture
        raise UserError(
            f"{record.file} has {picture.width} x {picture.height} pixels, but {source} says "
            f"{width} x {height}: put the annotated picture back, or correct its size and boxes."
        )
    return opened.picture


def collate(samples: Sequence[Sample]) -> MicroBatch:
    """Join samples into one batch and its targets; pictures smaller than the largest one are padded.

    Raises:
        ValueError: if there are no samples.
    """
    pixels, targets = zip(*samples, strict=True)
    return ImageBatch.from_images(pixels), targets


def steps_per_epoch(num_images: int, total_batch: int) -> int:
    """Return the number of updates in an epoch of global batches of `total_batch` images.

    Images that do not fill a last batch are dropped, but a data set smaller than one batch gives one update.
    """
    return max(1, num_images // total_batch)


def epoch_order(
    num_images: int, total_batch: int, seed: int, epoch: int, weights: Sequence[float] | None = None
) -> list[list[int]]:
    """Return the global batches of one epoch as indices of images: a permutation seeded by (seed, epoch).

    Each batch has `total_batch` images. Images that do not fill a last batch are left out. A data set smaller
    than one batch gives one batch, which is filled by repeating the permutation. With `weights`, one per
    image, the permutation is replaced by `num_images` draws in random order: the number of times that each
    image is drawn is proportional to its weight, rounded up or down at random.

    Raises:
        ValueError: if there are no images, or `total_batch` is not positive.
    """
    if num_images < 1 or total_batch < 1:
        raise ValueError(f"epoch_order needs images and a batch, not {num_images} and {total_batch}")
    generator = _generator(seed, epoch)
    permutation = generator.permutation(num_images)
    if weights is not None:
        ends = np.cumsum(np.asarray(weights, dtype=float)[permutation])
        points = (np.arange(num_images) + generator.random()) / num_images * ends[-1]
        # A sum may be rounded below the last point.
        drawn = np.searchsorted(ends, points, side="right").clip(max=num_images - 1)
        permutation = generator.permutation(permutation[drawn])
    steps = steps_per_epoch(num_images, total_batch)
    batches: list[list[int]] = np.resize(permutation, (steps, total_batch)).tolist()
    return batches


def balancing_weights(split: Split) -> list[float]:
    """Return one weight per image, in the order of `split.images`, for `epoch_order`.

    Images with rare classes get larger weights, so that they are drawn more often than others.

    The weight of a class that occurs in n images is sqrt(N / n), with the number N of images that have the
    most frequent class. The weight of an image is that of its rarest class, as in repeat factor sampling
    (Gupta et al., CVPR 2019), or 1 if it has no objects. Crowd regions do not count.

    Raises:
        ValueError: if the split has no images.
    """
    present = [np.unique(record.labels[~record.crowd]) for record in split.images]
    counts = np.bincount(np.concatenate(present), minlength=1)
    return [
        max((float(np.sqrt(counts.max() / counts[c])) for c in classes), default=1.0) for classes in present
    ]


def micro_batch_keys(
    split: Split,
    *,
    batch_size: int,
    accumulate: int,
    seed: int,
    epoch: int,
    start_step: int = 0,
    rank: int = 0,
    world_size: int = 1,
    balance: bool = False,
) -> list[list[SampleKey]]:
    """Return the keys of the samples in each micro-batch that process `rank` reads in one epoch.

    A key is (epoch, index of the image). The micro-batches are in the order in which they are used,
    `accumulate` of them per update. The arguments are described in `training_loader`.

    Raises:
        UserError: if the split has no images.
        ValueError: if `rank` is negative or not below `world_size`, `start_step` is negative, or `batch_size`
            or `accumulate` is not positive.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is not one of {world_size} processes")
    if start_step < 0:
        raise ValueError(f"start_step must not be negative ({start_step})")
    if len(split) == 0:
        raise UserError(f"{split.source}: the split {split.name} has no images to train on.")
    weights = balancing_weights(split) if balance else None
    batches = epoch_order(len(split), batch_size * accumulate * world_size, seed, epoch, weights)
    micro_batches = []
    for batch in batches[start_step:]:
        for part in range(accumulate):
            # numbered so that micro-batches hold the same images for any split into (world_size, accumulate)
            start = (part * world_size + rank) * batch_size
            micro_batches.append([(epoch, index) for index in batch[start : start + batch_size]])
    return micro_batches


class MicroBatchKeys:
    """The keys of the samples in each micro-batch that a training process reads in `num_updates` updates.

    The keys begin with update `start_step` of `epoch` and continue into the following epochs, whose keys are
    computed when they are needed. Without `num_updates`, they end with `epoch`. All arguments are described
    in `training_loader`; `order` holds further arguments of `micro_batch_keys`.

    Raises:
        UserError: if the split has no images.
        ValueError: if an argument is out of range, as in `micro_batch_keys`.
    """

    def __init__(
        self, split: Split, *, epoch: int, start_step: int = 0, num_updates: int | None = None, **order: Any
    ) -> None:
        self._keys_of = partial(micro_batch_keys, split, **order)
        self._epoch, self._first = epoch, self._keys_of(epoch=epoch, start_step=start_step)
        self._length = len(self._first) if num_updates is None else num_updates * order["accumulate"]

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[list[SampleKey]]:
        further = (self._keys_of(epoch=epoch) for epoch in count(self._epoch + 1))
        return islice(chain(self._first, chain.from_iterable(further)), self._length)


def training_loader(
    split: Split,
    config: DataConfig,
    *,
    batch_size: int,
    accumulate: int,
    seed: int,
    epoch: int,
    start_step: int = 0,
    num_updates: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    balance: bool = False,
) -> DataLoader[MicroBatch]:
    """Return the loader of the micro-batches of process `rank`, `accumulate` of them per update.

    The loader yields (ImageBatch of `batch_size` images, their targets). It does not use PyTorch's global
    generator. Its worker processes start once and read ahead across epochs.

    Args:
        split: the images to train on.
        config: the settings of the augmentation and of the worker processes.
        batch_size: the number of images in a micro-batch.
        accumulate: the number of micro-batches of each training process in an update.
        seed: the seed of the order and of the augmentation.
        epoch: the epoch with the first update.
        start_step: the number of updates of this epoch that are already done; their images are not read.
        num_updates: the number of updates, which may continue into the following epochs; None means to the
            end of this epoch.
        rank: the number of this training process, from 0.
        world_size: the number of training processes.
        balance: whether to draw images with rare classes more often.

    Raises:
        UserError: if the split has no images. Iterating also raises it if a picture cannot be read, has more
            than `config.max_pixels` pixels or does not have the size that its annotation states, or if a
            batch does not fit into shared memory.
        ValueError: if `rank` is negative or not below `world_size`, `start_step` is negative, or `batch_size`
            or `accumulate` is not positive.
        RuntimeError: while iterating, if a worker process dies or does not deliver a batch within
            `WORKER_TIMEOUT_S`; `lost_workers_as_user_errors` converts this error.
    """
    micro_batches = MicroBatchKeys(
        split,
        batch_size=batch_size,
        accumulate=accumulate,
        seed=seed,
        epoch=epoch,
        start_step=start_step,
        num_updates=num_updates,
        rank=rank,
        world_size=world_size,
        balance=balance,
    )
    # more processes than cores only cost memory, and PyTorch warns about them
    num_workers = min(config.num_workers, num_cores(), len(micro_batches))
    return _TrainingLoader(
        _MicroBatches(Samples(split, config, seed)),
        sampler=micro_batches,
        batch_size=None,  # each element of the sampler already is a micro-batch
        collate_fn=_unchanged,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=prepare_worker,
        timeout=WORKER_TIMEOUT_S if num_workers else 0,
    )


class _MicroBatches(Dataset[Any]):
    """Micro-batches, each indexed by the keys of its samples.

    A UserError is *returned*, and `_TrainingLoader` raises it: if a worker raised it, PyTorch would replace
    its message with a traceback.

    In a worker process, indexing also copies the batch to shared memory. PyTorch would do that later, in a
    thread: if there were no space, the batch would be lost, and training would wait for it forever.
    """

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __getitem__(self, keys: Sequence[SampleKey]) -> MicroBatch | UserError:
        try:
            batch = collate([self.samples[key] for key in keys])
        except UserError as error:
            return error
        return batch if get_worker_info() is None else _shared(batch)


def _shared(batch: MicroBatch) -> MicroBatch | UserError:
    """Move the tensors of a batch to shared memory; return the batch, or a UserError if there is no room."""
    images, targets = batch
    try:
        for tensor in (images.pixels, images.mask, *(each for one in targets for each in vars(one).values())):
            if isinstance(tensor, Tensor) and tensor.numel():
                tensor.share_memory_()
    except (RuntimeError, OSError) as error:
        size, reason = images.pixels.nbytes / 1e6, str(error).rpartition(": ")[2]
        return UserError(
            f"there is no room for a batch of {size:.0f} MB in shared memory (/dev/shm: {reason}): "
            "read the pictures in the main process with --data.num_workers 0, or enlarge it, in Docker with "
            "--shm-size 2g."
        )
    return batch


@contextmanager
def lost_workers_as_user_errors() -> Iterator[None]:
    """Convert PyTorch's errors about dead or hanging workers in the `with` block to a `UserError`.

    PyTorch raises some of these errors in a signal handler, so they may occur anywhere in the block. Other
    errors pass unchanged.
    """
    try:
        yield
    except RuntimeError as error:
        reason = str(error).partition(". ")[0].rstrip(".")
        if not reason.startswith("DataLoader "):
            raise
        raise UserError(
            f"a process that reads pictures was lost ({reason}): memory or /dev/shm may be full, or the disk "
            "may not answer; read the pictures in the main process with --data.num_workers 0, or in Docker "
            "enlarge shared memory with --shm-size 2g."
        ) from error


class _TrainingLoader(DataLoader[MicroBatch]):
    def __iter__(self) -> Iterator[MicroBatch]:  # type: ignore[override]
        release_free_memory()  # otherwise forked workers would keep it, while this process writes to a copy
        others = set(multiprocessing.active_children())
        batches = super().__iter__()
        workers = set(multiprocessing.active_children()) - others
        try:
            while (batch := next(batches, None)) is not None:
                if isinstance(batch, UserError):
                    raise batch
                yield batch
        finally:
            # PyTorch would do this when `batches` is deleted, but an error's traceback may keep it alive.
            shut_down = getattr(batches, "_shutdown_workers", None)
            if shut_down is not None:
                shut_down()  # requests that the workers end, and waits for some seconds
            for worker in workers:
                worker.kill()  # a worker that hangs ignores the request, and would keep this process alive
                worker.join(5)


def _unchanged(batch: Any) -> Any:
    return batch


def prepare_worker(worker: int) -> None:
    """Prepare a worker process: ignore SIGINT and SIGTERM, and print no traceback if the main process stops.

    Ctrl-C and schedulers signal the whole process group, but the main process needs its workers to finish an
    update. The workers still end with the main process, because PyTorch's workers watch it. If the main
    process stops while it receives a batch, the thread that sends the batch would otherwise print a
    traceback. `worker`, the worker's number, is passed by PyTorch and not used.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    show = sys.excepthook

    def show_unless_disconnected(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        if not issubclass(kind, EOFError | ConnectionError):
            show(kind, error, traceback)

    sys.excepthook = show_unless_disconnected


def _generator(seed: int, *place: int) -> np.random.Generator:
    return np.random.default_rng(seed_sequence(seed, *place))

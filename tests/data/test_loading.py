"""data/loading.py: the same images in the same update, however the work is split; errors in one sentence."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from deformable_detr.config import DataConfig
from deformable_detr.data import loading
from deformable_detr.data.formats import read_split
from deformable_detr.data.loading import (
    MicroBatch,
    Samples,
    balancing_weights,
    collate,
    epoch_order,
    micro_batch_keys,
    steps_per_epoch,
    training_loader,
)
from deformable_detr.data.records import ImageRecord, Split
from deformable_detr.detections import ClassTable
from deformable_detr.errors import UserError
from tests.support.paths import data_set

CONFIG = DataConfig(
    image_size=48,
    max_size=80,
    train_sizes=(32, 40, 48),
    crop_sizes=(36, 44),
    crop_min=30,
    crop_max=44,
    num_workers=0,
)


def record(
    folder: Path, number: int, boxes: list[list[float]], crowd: list[bool] | None = None
) -> ImageRecord:
    height, width = 30 + number % 3, 40 + number % 5
    path = folder / f"{number}.png"
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    count = len(boxes)
    return ImageRecord(
        path=path,
        file_name=path.name,
        image_id=100 + number,
        size=(height, width),
        boxes_xyxy=np.array(boxes, dtype=np.float64).reshape(count, 4),
        labels=np.arange(count, dtype=np.int64),
        crowd=np.array(crowd if crowd is not None else [False] * count, dtype=bool),
        difficult=np.zeros(count, dtype=bool),
        area=np.ones(count),
        annotation_ids=np.arange(count, dtype=np.int64),
    )


def split_of(*records: ImageRecord) -> Split:
    return Split("train", "coco", Path("annotations.json"), ClassTable.from_names("abc"), records)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """19 pictures; every fourth without objects."""
    folder = tmp_path_factory.mktemp("pictures")
    boxes = [[2.0, 3.0, 20.0, 25.0], [10.0, 5.0, 38.0, 29.0]]
    return split_of(*(record(folder, number, boxes[: number % 4 and 2]) for number in range(19)))


def load(split: Split, config: DataConfig = CONFIG, **changes: Any) -> list[MicroBatch]:
    arguments: dict[str, Any] = {"batch_size": 4, "accumulate": 1, "seed": 1, "epoch": 0} | changes
    return list(training_loader(split, config, **arguments))


def image_ids(batch: MicroBatch) -> list[int | str]:
    return [target.image_id for target in batch[1]]


def samples_by_id(batch: MicroBatch) -> dict[int | str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Unpadded pixels, boxes, labels."""
    images, targets = batch
    found = {}
    for pixels, mask, target in zip(images.pixels, images.mask, targets, strict=True):
        h, w = int((~mask[:, 0]).sum()), int((~mask[0]).sum())
        found[target.image_id] = (pixels[:, :h, :w], target.boxes_cxcywh, target.labels)
    return found


def assert_same(one: list[MicroBatch], other: list[MicroBatch]) -> None:
    assert len(one) == len(other)
    for (images_a, targets_a), (images_b, targets_b) in zip(one, other, strict=True):
        assert torch.equal(images_a.pixels, images_b.pixels)
        assert torch.equal(images_a.mask, images_b.mask)
        for a, b in zip(targets_a, targets_b, strict=True):
            assert a.image_id == b.image_id
            assert torch.equal(a.boxes_cxcywh, b.boxes_cxcywh)
            assert torch.equal(a.labels, b.labels)


# epoch_order


def test_an_epoch_is_a_permutation_without_its_remainder() -> None:
    batches = epoch_order(19, 4, seed=0, epoch=0)
    assert [len(batch) for batch in batches] == [4, 4, 4, 4]
    flat = [index for batch in batches for index in batch]
    assert len(set(flat)) == 16
    assert set(flat) < set(range(19))
    assert len(batches) == steps_per_epoch(19, 4)


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    assert epoch_order(50, 5, 3, 7) == epoch_order(50, 5, 3, 7)
    assert epoch_order(50, 5, 3, 7) != epoch_order(50, 5, 3, 8)
    assert epoch_order(50, 5, 3, 7) != epoch_order(50, 5, 4, 7)
    # seed and epoch are not simply added
    assert epoch_order(50, 5, 3, 7) != epoch_order(50, 5, 4, 6)
    assert epoch_order(50, 5, -1, 0) == epoch_order(50, 5, -1, 0)


def test_fewer_images_than_a_batch_start_over() -> None:
    (batch,) = epoch_order(3, 8, seed=0, epoch=0)
    assert len(batch) == 8
    assert sorted(batch[:3]) == [0, 1, 2]
    assert batch[3:6] == batch[:3]
    assert steps_per_epoch(3, 8) == 1


def test_order_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="needs images"):
        epoch_order(0, 4, 0, 0)


def test_weights_say_how_often_an_image_is_drawn() -> None:
    weights = [1.0, 1.0, 2.5, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0]  # of 9 images, 10 in all
    drawn = np.zeros(9)
    for epoch in range(400):
        flat = [index for batch in epoch_order(9, 1, 0, epoch, weights) for index in batch]
        assert len(flat) == 9
        counts = np.bincount(flat, minlength=9)
        expected = 0.9 * np.array(weights)
        assert ((counts == np.floor(expected)) | (counts == np.ceil(expected))).all()
        drawn += counts
    np.testing.assert_allclose(drawn / 400, expected, atol=0.08)
    assert epoch_order(9, 1, 0, 3, weights) == epoch_order(9, 1, 0, 3, weights)


def test_an_image_weighs_as_much_as_its_rarest_class(split: Split) -> None:
    def with_labels(*labels: int) -> ImageRecord:
        count = len(labels)
        return replace(
            split.images[0],
            boxes_xyxy=np.tile([0.0, 0.0, 9.0, 9.0], (count, 1)),
            labels=np.array(labels, dtype=np.int64),
            crowd=np.zeros(count, dtype=bool),
        )

    images = (*(with_labels(0, 0) for _ in range(8)), with_labels(0, 1), with_labels(1), with_labels())
    weights = balancing_weights(replace(split, images=images))
    assert weights == [*[1.0] * 8, np.sqrt(9 / 2), np.sqrt(9 / 2), 1.0]


def test_balanced_micro_batches_follow_the_weights(split: Split) -> None:
    order: dict[str, Any] = {"batch_size": 1, "accumulate": 1, "seed": 0, "epoch": 0}
    keys = micro_batch_keys(split, balance=True, **order)
    expected = epoch_order(len(split), 1, 0, 0, balancing_weights(split))
    assert keys == [[(0, index)] for (index,) in expected]
    assert micro_batch_keys(split, balance=True, start_step=2, **order) == keys[2:]


# Samples and collate


def test_a_sample_is_a_function_of_seed_epoch_and_index(split: Split) -> None:
    samples = Samples(split, CONFIG, seed=5)
    assert len(samples) == 19
    pixels, target = samples[2, 6]
    again, _ = Samples(split, CONFIG, seed=5)[2, 6]
    assert torch.equal(pixels, again)
    assert target.image_id == 106
    assert target.labels.dtype == torch.int64

    sums = {samples[epoch, 6][0].sum().item() for epoch in range(6)}
    assert len(sums) > 3
    assert any(not torch.equal(pixels, Samples(split, CONFIG, seed=seed)[2, 6][0]) for seed in range(3))


def test_crowd_regions_are_not_learned(tmp_path: Path) -> None:
    boxes = [[0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 20.0, 20.0], [1.0, 1.0, 30.0, 25.0]]
    config = DataConfig(image_size=48, max_size=80, augmentation="none")
    one = split_of(record(tmp_path, 0, boxes, crowd=[False, True, False]))
    _, target = Samples(one, config, seed=0)[0, 0]
    assert target.labels.tolist() == [0, 2]


def test_collate_pads_at_the_bottom_and_right(split: Split) -> None:
    samples = [Samples(split, CONFIG, seed=0)[0, index] for index in range(5)]
    images, targets = collate(samples)
    assert len(images) == len(targets) == 5
    for (pixels, _), padded, mask in zip(samples, images.pixels, images.mask, strict=True):
        _, h, w = pixels.shape
        assert torch.equal(padded[:, :h, :w], pixels)
        assert not mask[:h, :w].any()
        assert mask.sum() == mask.numel() - h * w
        assert (padded[:, mask] == 0).all()


def test_a_picture_of_another_size_is_refused_by_name(tmp_path: Path) -> None:
    one = split_of(record(tmp_path, 0, [[0.0, 0.0, 10.0, 10.0]]))
    Image.new("RGB", (17, 23)).save(tmp_path / "0.png")
    with pytest.raises(UserError, match=r"0\.png has 17 x 23 pixels, but annotations\.json says 40 x 30"):
        Samples(one, CONFIG, seed=0)[0, 0]


# training_loader


@pytest.mark.parametrize(
    ("world_size", "accumulate", "batch_size"), [(1, 2, 4), (2, 1, 4), (2, 2, 2), (4, 2, 1), (1, 8, 1)]
)
def test_any_partition_sees_the_same_images_in_the_same_update(
    split: Split, world_size: int, accumulate: int, batch_size: int
) -> None:
    whole = [samples_by_id(batch) for batch in load(split, batch_size=8)]
    ranks = [
        load(split, batch_size=batch_size, accumulate=accumulate, world_size=world_size, rank=rank)
        for rank in range(world_size)
    ]
    assert all(len(batches) == len(whole) * accumulate for batches in ranks)
    for step, expected in enumerate(whole):
        seen: dict[int | str, tuple[torch.Tensor, ...]] = {}
        for batches in ranks:
            for batch in batches[step * accumulate : (step + 1) * accumulate]:
                assert len(batch[0]) == batch_size
                seen |= samples_by_id(batch)
        assert seen.keys() == expected.keys()
        for image_id, sample in seen.items():
            assert all(torch.equal(a, b) for a, b in zip(sample, expected[image_id], strict=True))


def test_micro_batches_of_one_size_are_the_same_on_one_process_and_on_two(split: Split) -> None:
    alone = load(split, batch_size=2, accumulate=4)
    ranks = [load(split, batch_size=2, accumulate=2, world_size=2, rank=rank) for rank in (0, 1)]
    interleaved = [batch for pair in zip(*ranks, strict=True) for batch in pair]
    assert_same(alone, interleaved)


def test_worker_processes_change_nothing(split: Split) -> None:
    two_workers = DataConfig(**{**vars(CONFIG), "num_workers": 2})
    assert_same(load(split), load(split, two_workers))
    # more workers than micro-batches or cores
    many = DataConfig(**{**vars(CONFIG), "num_workers": 64})
    assert_same(load(split, batch_size=8), load(split, many, batch_size=8))


def test_the_global_generator_is_left_alone(split: Split) -> None:
    before = torch.get_rng_state()
    load(split)
    load(split, DataConfig(**{**vars(CONFIG), "num_workers": 1}))
    assert torch.equal(torch.get_rng_state(), before)


def test_epochs_differ_in_order_and_in_augmentation(split: Split) -> None:
    first, second = load(split, epoch=0), load(split, epoch=1)
    assert [image_ids(batch) for batch in first] != [image_ids(batch) for batch in second]


def test_one_loader_continues_into_the_following_epochs(split: Split) -> None:
    apart = [batch for epoch in (2, 3, 4) for batch in load(split, epoch=epoch, batch_size=8)]
    start = {"batch_size": 8, "epoch": 2, "start_step": 1}
    assert_same(load(split, **start, num_updates=4), apart[1:5])
    two_workers = DataConfig(**{**vars(CONFIG), "num_workers": 2})
    assert_same(load(split, two_workers, **start, num_updates=4), apart[1:5])


def test_resuming_skips_updates_without_reading_them(tmp_path: Path) -> None:
    ten = split_of(*(record(tmp_path, number, [[0.0, 0.0, 9.0, 9.0]]) for number in range(10)))
    everything = load(ten, batch_size=2, accumulate=2)
    for target in (target for batch in everything[:2] for target in batch[1]):
        (tmp_path / f"{int(target.image_id) - 100}.png").unlink()
    assert_same(load(ten, batch_size=2, accumulate=2, start_step=1), everything[2:])
    assert load(ten, batch_size=2, accumulate=2, start_step=2) == []


def test_length_is_known_before_reading(split: Split) -> None:
    loader = training_loader(split, CONFIG, batch_size=2, accumulate=2, seed=0, epoch=0, start_step=1)
    assert len(loader) == (19 // 4 - 1) * 2


def test_a_small_data_set_still_fills_a_batch(split: Split) -> None:
    (batch,) = load(split_of(*split.images[:3]), batch_size=8)
    assert len(batch[0]) == 8
    assert set(image_ids(batch)) == {100, 101, 102}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_broken_picture_is_one_sentence_also_from_a_worker(tmp_path: Path, num_workers: int) -> None:
    four = split_of(*(record(tmp_path, number, []) for number in range(4)))
    (tmp_path / "2.png").write_bytes(b"not a picture")
    config = DataConfig(**{**vars(CONFIG), "num_workers": num_workers})
    with pytest.raises(UserError) as caught:
        load(four, config, batch_size=1)
    assert type(caught.value) is UserError
    assert str(caught.value).startswith(str(tmp_path / "2.png"))
    assert "Traceback" not in str(caught.value)
    assert "\n" not in str(caught.value)


def one_worker() -> DataConfig:
    return DataConfig(**{**vars(CONFIG), "num_workers": 1})


def test_full_shared_memory_is_one_sentence(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's own thread would lose the batch, and training would wait for it for ever."""

    def full(self: Tensor) -> Tensor:
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    monkeypatch.setattr(Tensor, "share_memory_", full)
    with pytest.raises(UserError, match=r"No space left.*--data\.num_workers 0.*--shm-size"):
        load(split, one_worker())


@pytest.mark.parametrize(
    ("fate", "timeout", "words"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), 60, "(Killed|exited)"),
        (lambda: time.sleep(100), 1, "timed out"),
    ],
)
def test_dead_and_stuck_workers_are_noticed(
    split: Split,
    monkeypatch: pytest.MonkeyPatch,
    fate: Callable[[], None],
    timeout: float,
    words: str,
) -> None:
    monkeypatch.setattr(loading, "WORKER_TIMEOUT_S", timeout)
    monkeypatch.setattr(Samples, "__getitem__", lambda *_: fate())
    with (
        pytest.raises(UserError, match=rf"was lost \(.*{words}.*--data\.num_workers 0.*--shm-size"),
        loading.lost_workers_as_user_errors(),
    ):
        load(split, one_worker())
    assert not multiprocessing.active_children()


def test_a_split_without_images_is_refused() -> None:
    with pytest.raises(UserError, match=r"annotations\.json: the split train has no images"):
        load(split_of())


@pytest.mark.parametrize("changes", [{"rank": 2, "world_size": 2}, {"rank": -1}, {"start_step": -1}])
def test_impossible_places_are_refused(split: Split, changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"rank|start_step"):
        load(split, CONFIG, **changes)


def test_the_data_set_can_be_sent_to_spawned_workers(split: Split) -> None:
    loader = training_loader(split, CONFIG, batch_size=2, accumulate=1, seed=0, epoch=0)
    copy = pickle.loads(pickle.dumps((loader.dataset, loader.collate_fn)))[0]
    assert image_ids(copy[[(0, 4)]]) == [104]


def test_an_epoch_of_real_pictures() -> None:
    real = read_split(data_set("tiny_coco"), "train")
    config = DataConfig(**{**vars(CONFIG), "num_workers": 2})
    batches = load(real, config, batch_size=5)
    assert len(batches) == 10
    assert sorted(image_id for batch in batches for image_id in image_ids(batch)) == [
        record.image_id for record in real.images
    ]
    for images, targets in batches:
        assert images.pixels.isfinite().all()
        for target in targets:
            cx, cy, w, h = target.boxes_cxcywh.unbind(1)
            assert ((cx - w / 2 > -1e-5) & (cx + w / 2 < 1 + 1e-5) & (w > 0)).all()
            assert ((cy - h / 2 > -1e-5) & (cy + h / 2 < 1 + 1e-5) & (h > 0)).all()
            assert ((target.labels >= 0) & (target.labels < len(real.classes))).all()


def test_a_worker_whose_batch_nobody_receives_prints_no_traceback() -> None:
    code = """
import sys
from deformable_detr.data.loading import prepare_worker
prepare_worker(0)
for kind in (ConnectionResetError, EOFError, ValueError):
    sys.excepthook(kind, kind("shown" if kind is ValueError else "hidden"), None)
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr.strip() == "ValueError: shown"

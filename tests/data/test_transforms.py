"""data/transforms.py: the published sizes exactly, and boxes that stay on what they were drawn around."""

from __future__ import annotations

import pickle
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from torchvision.transforms import v2

from deformable_detr.config import Augmentation, DataConfig
from deformable_detr.data.evaluation_transform import evaluation_transform
from deformable_detr.data.preprocessing import input_size, resized_size
from deformable_detr.data.transforms import training_transform

# small pictures, pixels as they are: mean 0 and std 1
SMALL = DataConfig(
    image_size=64,
    max_size=160,
    train_sizes=(48, 64, 80),
    crop_sizes=(56, 64),
    crop_min=40,
    crop_max=60,
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
)
AUGMENTATIONS: tuple[Augmentation, ...] = ("paper", "light", "none")


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8).astype(np.uint8)
    )


@pytest.mark.parametrize(
    ("size", "short", "max_size", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1066)),  # 1066.67 is truncated
        ((640, 480), 800, 1333, (1066, 800)),
        ((427, 640), 800, 1333, (800, 1199)),
        ((500, 500), 800, 1333, (800, 800)),
        ((240, 640), 800, 1333, (500, 1333)),  # limited: round(499.875) = 500
        ((430, 1764), 800, 1333, (325, 1333)),  # limited: round(324.94) = 325, int(1333.26)
        ((100, 3000), 800, 1333, (44, 1320)),  # limited: round(44.43) = 44, well below max_size
        ((90, 1200), 800, 1333, (100, 1333)),  # limited: round(99.975) = 100
        ((800, 1200), 800, 1333, (800, 1200)),  # fits already
        ((500, 1334), 800, 1333, (500, 1334)),  # limited to its own short side: unchanged, one too long
        ((480, 640), 400, None, (400, 533)),
        ((100, 3000), 400, None, (400, 12000)),
        ((1, 5000), 800, 1333, (1, 1333)),  # round(0.27) = 0 would be no picture
        ((5000, 1), 800, 1333, (1333, 1)),
    ],
)
def test_resized_size_by_hand(
    size: tuple[int, int], short: int, max_size: int | None, expected: tuple[int, int]
) -> None:
    assert resized_size(size, short, max_size) == expected


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 300))
@settings(max_examples=60)
def test_resized_size_is_torchvisions_where_nothing_is_limited(height: int, width: int, short: int) -> None:
    by_torchvision = v2.functional.resize(torch.zeros(1, height, width), [short]).shape[1:]
    assert resized_size((height, width), short) == tuple(by_torchvision)


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(32, 1000))
def test_resized_size_keeps_to_the_limit_but_for_rounding(height: int, width: int, short: int) -> None:
    new = resized_size((height, width), short, 1333)
    aspect = max(height, width) / min(height, width)
    assert min(new) >= 1
    assert max(new) <= 1333 + aspect / 2 + 1
    assert resized_size((width, height), short, 1333) == new[::-1]


@pytest.mark.parametrize(
    ("size", "short", "multiple", "expected"),
    [
        ((480, 640), None, 1, (320, 426)),
        ((480, 640), None, 32, (320, 416)),  # 426 is 13.3 multiples
        ((480, 640), 256, 32, (256, 352)),  # 341 is 10.7 multiples
        ((480, 640), 112, 32, (128, 160)),  # 3.5 multiples are rounded up
        ((640, 480), 256, 32, (352, 256)),
        ((430, 1764), None, 32, (128, 544)),  # limited: 133 x 544
        ((10, 3000), None, 32, (32, 608)),  # a strip: 2 x 600
    ],
)
def test_input_size_by_hand(
    size: tuple[int, int], short: int | None, multiple: int, expected: tuple[int, int]
) -> None:
    config = DataConfig(image_size=320, max_size=544, size_multiple=multiple)
    assert input_size(size, config, short) == expected


@pytest.mark.parametrize("augmentation", ["light", "paper", "none"])
def test_training_rounds_the_sides_too(augmentation: Augmentation) -> None:
    config = DataConfig(
        image_size=96, train_sizes=(64, 96), max_size=200, size_multiple=32, augmentation=augmentation
    )
    boxes, labels = torch.tensor([[10.0, 20.0, 110.0, 90.0]]), torch.tensor([0])
    picture = Image.fromarray(np.zeros((111, 157, 3), np.uint8))
    for seed in range(8):
        pixels, *_ = training_transform(config)(picture, boxes, labels, np.random.default_rng(seed))
        assert pixels.shape[1] % 32 == pixels.shape[2] % 32 == 0


def test_evaluation_resizes_like_torchvision_on_pictures_and_normalises() -> None:
    config = DataConfig(image_size=120, max_size=200)
    picture = noise(90, 100)
    expected = v2.Compose(
        [
            v2.Resize([120, 133]),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(config.mean, config.std),
        ]
    )(picture)
    pixels = evaluation_transform(config)(picture)
    assert pixels.shape == (3, 120, 133)
    assert pixels.dtype == torch.float32
    torch.testing.assert_close(pixels, expected)


def test_none_is_evaluation_with_boxes() -> None:
    config = replace(SMALL, augmentation="none")
    picture = noise(50, 100)
    pixels, boxes, labels = training_transform(config)(
        picture, torch.tensor([[10.0, 5.0, 30.0, 45.0]]), torch.tensor([3]), np.random.default_rng(0)
    )
    torch.testing.assert_close(pixels, evaluation_transform(config)(picture))
    torch.testing.assert_close(boxes, torch.tensor([[0.2, 0.5, 0.2, 0.8]]))
    assert labels.tolist() == [3]


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
@given(data=st.data())
@settings(max_examples=60)
def test_boxes_stay_on_the_painted_rectangle(augmentation: Augmentation, data: st.DataObject) -> None:
    height, width = data.draw(st.integers(40, 120)), data.draw(st.integers(40, 120))
    x0, y0 = data.draw(st.integers(0, width - 14)), data.draw(st.integers(0, height - 14))
    x1, y1 = data.draw(st.integers(x0 + 12, width - 1)), data.draw(st.integers(y0 + 12, height - 1))
    picture = Image.new("RGB", (width, height))
    ImageDraw.Draw(picture).rectangle([x0, y0, x1 - 1, y1 - 1], fill="white")
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32)))

    pixels, boxes, labels = training_transform(replace(SMALL, augmentation=augmentation))(
        picture, torch.tensor([[x0, y0, x1, y1]]), torch.tensor([7]), generator
    )

    painted = pixels.mean(dim=0) > 0.45
    h, w = painted.shape
    rows, columns = painted.any(dim=1).nonzero().flatten(), painted.any(dim=0).nonzero().flatten()
    if len(boxes) == 0:
        # dropped: light drops what is mostly gone, the others only what is gone
        assert augmentation == "light" or len(rows) <= 1 or len(columns) <= 1
        return
    assert labels.tolist() == [7]
    cx, cy, bw, bh = (boxes[0] * torch.tensor([w, h, w, h])).tolist()
    assert bw > 0
    assert bh > 0
    if len(rows) == 0:
        assert min(bw, bh) < 2  # a sliver that the resize has blurred away
        return
    seen = (columns[0].item(), rows[0].item(), columns[-1].item() + 1, rows[-1].item() + 1)
    assert (cx - bw / 2, cy - bh / 2, cx + bw / 2, cy + bh / 2) == pytest.approx(seen, abs=1.5)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_all_randomness_is_the_generators(augmentation: Augmentation) -> None:
    transform = training_transform(replace(SMALL, augmentation=augmentation))
    arguments = (noise(70, 90), torch.tensor([[10.0, 10.0, 60.0, 60.0]]), torch.tensor([1]))

    def states() -> tuple[object, ...]:
        return (torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state()))

    before = states()
    samples = [transform(*arguments, np.random.default_rng(seed)) for seed in range(8)]
    again = [transform(*arguments, np.random.default_rng(seed)) for seed in range(8)]
    assert states() == before
    for one, other in zip(samples, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    distinct = {(pixels.shape, pixels.sum().item()) for pixels, _, _ in samples}
    assert len(distinct) == 1 if augmentation == "none" else len(distinct) > 4


def test_paper_flips_half_and_crops_half() -> None:
    # a crop is square here, an uncropped picture is not; the box tells whether it was flipped
    config = replace(
        SMALL, augmentation="paper", crop_sizes=(48,), crop_min=48, crop_max=48, train_sizes=(48,)
    )
    transform = training_transform(config)
    picture = Image.new("RGB", (96, 48))
    flips, crops = 0, 0
    for seed in range(300):
        pixels, boxes, _ = transform(
            picture, torch.tensor([[0.0, 0.0, 1.0, 48.0]]), torch.tensor([0]), np.random.default_rng(seed)
        )
        cropped = pixels.shape[1:] == (48, 48)
        assert cropped or pixels.shape[1:] == (48, 96)
        crops += cropped
        flips += not cropped and boxes[0, 0].item() > 0.5
    assert 120 < crops < 180
    assert 50 < flips < 100  # half of the uncropped half


def test_paper_crop_sides_are_uniform_between_the_limits() -> None:
    config = replace(
        SMALL,
        augmentation="paper",
        crop_sizes=(50,),
        crop_min=40,
        crop_max=60,
        train_sizes=(80,),
        max_size=400,
    )
    transform = training_transform(config)
    picture = Image.new("RGB", (100, 50))
    ratios = []
    for seed in range(200):
        pixels, _, _ = transform(
            picture, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), np.random.default_rng(seed)
        )
        ratios.append(pixels.shape[2] / pixels.shape[1])
    cropped = [ratio for ratio in ratios if ratio < 1.9]
    # width 40..60 over height 40..50
    assert min(cropped) >= 40 / 50 - 0.02
    assert max(cropped) <= 60 / 40 + 0.02
    assert min(cropped) < 0.87
    assert max(cropped) > 1.38


def test_paper_uses_all_eleven_sizes_and_the_limit() -> None:
    transform = training_transform(DataConfig())
    picture = Image.new("RGB", (12, 10))
    shorts = set()
    for seed in range(150):
        pixels, _, _ = transform(
            picture, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), np.random.default_rng(seed)
        )
        shorts.add(min(pixels.shape[1:]))
        assert max(pixels.shape[1:]) <= 1334
        if len(shorts) == 11:
            break
    assert shorts == set(DataConfig().train_sizes)


def test_a_picture_smaller_than_the_minimum_crop_is_kept_whole() -> None:
    config = replace(SMALL, augmentation="paper", crop_sizes=(32,), crop_min=384, crop_max=600)
    transform = training_transform(config)
    for seed in range(10):
        _, boxes, _ = transform(
            Image.new("RGB", (40, 40)),
            torch.tensor([[0.0, 0.0, 40.0, 40.0]]),
            torch.tensor([0]),
            np.random.default_rng(seed),
        )
        torch.testing.assert_close(boxes, torch.tensor([[0.5, 0.5, 1.0, 1.0]]))


def test_light_drops_what_is_mostly_gone_and_keeps_the_rest() -> None:
    transform = training_transform(replace(SMALL, augmentation="light", train_sizes=(64,)))
    # a grid of 10 x 10 boxes that fills the picture
    corners = torch.cartesian_prod(torch.arange(10), torch.arange(10)).float() * 10
    grid = torch.cat([corners, corners + 10], dim=1)
    counts = set()
    for seed in range(40):
        pixels, boxes, labels = transform(
            Image.new("RGB", (100, 100)), grid, torch.arange(100), np.random.default_rng(seed)
        )
        h, w = pixels.shape[1:]
        assert len(boxes) == len(labels) >= 36 - 12
        # what was a 10 x 10 box has at least a quarter of that left, in units of a whole box
        whole = boxes[:, 2:].amax(dim=0)
        assert (boxes[:, 2] * boxes[:, 3] >= 0.25 * whole.prod() - 1e-4).all()
        assert min(h, w) == 64
        counts.add(len(labels))
    assert 100 in counts  # half of the time there is no crop
    assert len(counts) > 5


def test_light_turns_half_upside_down_where_asked() -> None:
    picture = Image.new("RGB", (64, 64), "black")
    picture.paste("white", (20, 4, 44, 16))  # near the upper edge
    boxes, labels = torch.tensor([[20.0, 4.0, 44.0, 16.0]]), torch.tensor([0])

    def below_the_middle(config: DataConfig) -> int:
        count = 0
        for seed in range(200):
            pixels, found, _ = training_transform(config)(picture, boxes, labels, np.random.default_rng(seed))
            for cx, cy in found[:, :2].tolist():
                assert pixels[0, int(cy * pixels.shape[1]), int(cx * pixels.shape[2])] > 0.5
                count += cy > 0.5
        return count

    light = replace(SMALL, augmentation="light")
    assert below_the_middle(light) == 0
    assert 75 < below_the_middle(replace(light, vertical_flip=True)) < 125


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_pictures_without_objects(augmentation: Augmentation) -> None:
    pixels, boxes, labels = training_transform(replace(SMALL, augmentation=augmentation))(
        noise(60, 50), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), np.random.default_rng(1)
    )
    assert pixels.shape[0] == 3
    assert boxes.shape == (0, 4)
    assert labels.shape == (0,)
    assert labels.dtype == torch.int64


def test_boxes_are_clipped_and_labels_go_with_their_boxes() -> None:
    boxes = torch.tensor(
        [[-10.0, -10.0, 25.0, 50.0], [120.0, 0.0, 130.0, 10.0], [5.0, 5.0, 5.0, 9.0], [0, 0, 100, 50]]
    )
    _, boxes_cxcywh, labels = training_transform(replace(SMALL, augmentation="none"))(
        Image.new("RGB", (100, 50)), boxes.double(), torch.tensor([1, 2, 3, 4]), np.random.default_rng(0)
    )
    assert labels.tolist() == [1, 4]
    assert boxes_cxcywh.dtype == torch.float32
    assert type(boxes_cxcywh) is torch.Tensor
    torch.testing.assert_close(boxes_cxcywh, torch.tensor([[0.125, 0.5, 0.25, 1.0], [0.5, 0.5, 1.0, 1.0]]))


def test_transforms_can_be_sent_to_worker_processes() -> None:
    pickle.loads(pickle.dumps(training_transform(SMALL)))
    pickle.loads(pickle.dumps(evaluation_transform(SMALL)))

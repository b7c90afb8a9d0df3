"""data/drawn.py: the drawn data set says truly where its objects are, and is the same every time."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deformable_detr.data import scenes as synthetic
from deformable_detr.data.drawn import generate
from deformable_detr.data.formats import read_split
from deformable_detr.data.scenes import CLASS_NAMES, Scene, draw_scene
from deformable_detr.errors import UserError


def scenes(count: int, small_objects: bool = False) -> list[Scene]:
    return [draw_scene(np.random.default_rng(seed), (120, 160), small_objects) for seed in range(count)]


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("data") / "shapes", train=6, val=4, image_size=(96, 128))


def document_of(root: Path, split: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((root / "annotations" / f"instances_{split}.json").read_text())
    return document


def test_same_seed_same_bytes(root: Path, tmp_path: Path) -> None:
    again = generate(tmp_path / "again", train=6, val=4, image_size=(96, 128))
    other = generate(tmp_path / "other", train=6, val=4, image_size=(96, 128), seed=1)
    assert digests(root) == digests(again)
    assert digests(root) != digests(other)


def test_a_larger_set_begins_with_the_smaller_one(root: Path, tmp_path: Path) -> None:
    larger = digests(generate(tmp_path / "larger", train=8, val=5, image_size=(96, 128)))
    pictures = {name: digest for name, digest in digests(root).items() if name.endswith(".jpg")}
    assert pictures.items() <= larger.items()
    assert len(set(pictures.values())) == 10  # train and val hold different pictures


def test_layout_is_cocos(root: Path) -> None:
    assert sorted(path.name for path in root.iterdir()) == ["annotations", "train", "val"]
    for split, count in (("train", 6), ("val", 4)):
        document = document_of(root, split)
        assert [row["name"] for row in document["categories"]] == list(CLASS_NAMES)
        assert [row["id"] for row in document["categories"]] == [1, 2, 3, 4, 5, 6]
        assert len(document["images"]) == count
        for row in document["images"]:
            with Image.open(root / split / row["file_name"]) as picture:
                assert (picture.width, picture.height) == (row["width"], row["height"]) == (128, 96)
                assert picture.mode == "RGB"
        ids = [row["id"] for row in document["annotations"]]
        assert ids == list(range(1, len(ids) + 1))
        for row in document["annotations"]:
            x, y, w, h = row["bbox"]
            assert 0 <= x < x + w <= 128
            assert 0 <= y < y + h <= 96
            assert 0 < row["area"] <= w * h
            assert row["iscrowd"] == 0


def test_the_reader_finds_nothing_wrong(root: Path) -> None:
    split = read_split(root, "train")
    assert split.format == "coco"
    assert split.classes.names == CLASS_NAMES
    assert len(split) == 6
    assert split.problems == ()


@pytest.mark.parametrize("small_objects", [False, True])
def test_boxes_and_areas_are_those_of_the_masks(small_objects: bool) -> None:
    for scene in scenes(6, small_objects):
        assert scene.masks.sum(axis=0).max(initial=0) <= 1  # what one sees is one object
        assert scene.areas.tolist() == [int(mask.sum()) for mask in scene.masks]
        for mask, (x0, y0, x1, y1) in zip(scene.masks, scene.boxes_xyxy.tolist(), strict=True):
            assert mask[y0:y1, x0:x1].sum() == mask.sum() >= synthetic.MIN_VISIBLE_PIXELS
            assert mask[y0, x0:x1].any()
            assert mask[y1 - 1, x0:x1].any()
            assert mask[y0:y1, x0].any()
            assert mask[y0:y1, x1 - 1].any()


def test_masks_are_where_the_objects_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    # each object in one colour of its own, with hard edges, on black and without shadow or noise
    colours: list[np.ndarray] = []
    blend = synthetic.blend_into

    def plain(rng: object, shape: Any, *_: object) -> np.ndarray:
        colours.append(np.random.default_rng(len(colours)).integers(50, 256, 3))
        return np.broadcast_to(colours[-1].astype(np.float32), (*shape.coverage.shape, 3))

    def hard_edged(canvas: Any, left: int, top: int, alpha: Any, coat: Any) -> None:
        blend(canvas, left, top, (alpha >= 0.5).astype(np.float32), coat)

    monkeypatch.setattr(synthetic, "_coat", plain)
    monkeypatch.setattr(synthetic, "blend_into", hard_edged)
    monkeypatch.setattr(synthetic, "_throw_shadow", lambda *_: None)
    monkeypatch.setattr(synthetic, "_background", lambda rng, size, style: np.zeros((*size, 3), np.float32))
    monkeypatch.setattr(synthetic, "_photograph", lambda rng, c: Image.fromarray(np.rint(c).astype(np.uint8)))
    objects = 0
    for seed in range(12):
        colours.clear()
        scene = draw_scene(np.random.default_rng(seed), (120, 160), small_objects=seed % 2 == 1)
        pixels = np.asarray(scene.picture)
        # painted farthest first, listed nearest first
        for colour, mask in zip(reversed(colours), scene.masks, strict=True):
            assert ((pixels == colour).all(axis=-1) == mask).all()
            objects += 1
        assert ((pixels > 0).any(axis=-1) == scene.masks.any(axis=0)).all()
    assert objects > 100


def test_an_object_is_as_large_as_it_is_drawn() -> None:
    # the box of the pixels that are at least half covered, against the outline's size
    for seed in range(200):
        shape = synthetic.random_shape(np.random.default_rng(seed), (240, 320), synthetic.USUAL_STYLE)
        covered = shape.coverage >= 0.5
        side = max(np.ptp(np.flatnonzero(covered.any(axis=axis))) + 1 for axis in (0, 1))
        # the tips of stars and triangles are thinner than a pixel
        tip = 1.5 if CLASS_NAMES[shape.label] in ("circle", "ring", "cross") else 5
        assert shape.size - tip <= side <= shape.size + 1.3


def test_what_is_mostly_hidden_is_not_there() -> None:
    for seed in range(30):
        shapes, masks = synthetic.place_shapes(
            np.random.default_rng(seed), (120, 160), synthetic.SMALL_OBJECTS_STYLE
        )
        for shape, mask in zip(shapes, masks, strict=True):
            assert mask.sum() >= 0.25 * (shape.coverage >= 0.5).sum()


def placed(style: Any, count: int = 300) -> tuple[np.ndarray, list[int], list[int]]:
    """Long sides of the boxes, labels, and objects per picture."""
    sides, labels, counts = [], [], []
    for seed in range(count):
        shapes, masks = synthetic.place_shapes(np.random.default_rng(seed), (240, 320), style)
        counts.append(len(shapes))
        labels += [shape.label for shape in shapes]
        for mask in masks:
            sides.append(max(np.ptp(np.flatnonzero(mask.any(axis=axis))) + 1 for axis in (0, 1)))
    return np.array(sides), labels, counts


def test_the_usual_mixture() -> None:
    sides, labels, counts = placed(synthetic.USUAL_STYLE)
    assert sides.min() < 10
    assert sides.max() > 120  # half of the picture's short side
    assert 0.3 < (sides < 32).mean() < 0.6
    assert (sides >= 96).mean() > 0.05
    shares = np.bincount(labels, minlength=6) / len(labels)
    assert shares.min() > 0.12
    assert 0.005 < np.mean(np.array(counts) == 0) < 0.05
    assert max(counts) <= 10


def test_small_objects_are_many_and_small() -> None:
    sides, _, counts = placed(synthetic.SMALL_OBJECTS_STYLE, count=60)
    assert (sides <= 25).mean() > 0.8
    assert np.mean(counts) > 25
    assert 45 < max(counts) <= 60


def test_colours_say_nothing_about_the_class() -> None:
    # mean colour per class over many objects: close to each other
    sums, counts = np.zeros((6, 3)), np.zeros(6)
    for scene in scenes(60):
        pixels = np.asarray(scene.picture, dtype=np.float64)
        for label, mask in zip(scene.labels, scene.masks, strict=True):
            sums[label] += pixels[mask].mean(axis=0)
            counts[label] += 1
    means = sums / counts[:, None]
    assert np.ptp(means, axis=0).max() < 60


def test_nothing_is_left_of_a_set_that_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = 0

    def interrupted(*arguments: Any) -> Scene:
        nonlocal drawn
        drawn += 1
        if drawn == 4:
            raise KeyboardInterrupt
        return draw_scene(*arguments)

    monkeypatch.setattr("deformable_detr.data.drawn.draw_scene", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "shapes", train=3, val=3, image_size=(64, 64))
    assert drawn == 4
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_may_be_filled_but_a_full_one_not(tmp_path: Path) -> None:
    (tmp_path / "shapes").mkdir()
    root = generate(tmp_path / "shapes", train=1, val=1, image_size=(64, 64))
    assert root == tmp_path / "shapes"
    before = digests(root)
    with pytest.raises(UserError, match="is not empty"):
        generate(root, train=1, val=1, image_size=(64, 64), seed=2)
    assert digests(root) == before
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"train": 0, "val": 1}, "at least 1"),
        ({"train": 1, "val": 1, "image_size": (20, 300)}, "at least 64x64"),
    ],
)
def test_what_makes_no_data_set_is_refused(tmp_path: Path, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        generate(tmp_path / "shapes", **arguments)
    assert list(tmp_path.iterdir()) == []

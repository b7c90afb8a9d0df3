from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from deformable_detr.data.images import read_thumbnail
from deformable_detr.inspection.duplicates import THUMBNAIL, Fingerprint, find_duplicates
from tests.support.paths import data_set

LIMIT = 10**8


def scene(seed: int, size: tuple[int, int] = (480, 640)) -> Image.Image:
    """Smooth blobs with fine grain: as natural as noise gets."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    picture = np.asarray(coarse.resize((size[1], size[0]), Image.Resampling.BICUBIC), dtype=np.int16)
    grain = generator.integers(-12, 13, picture.shape)
    return Image.fromarray((picture + grain).clip(0, 255).astype(np.uint8))


def fingerprint(path: Path, split: str = "train") -> Fingerprint:
    with Image.open(path) as picture:
        aspect = picture.width / picture.height
    return Fingerprint(split, path.name, read_thumbnail(path, THUMBNAIL, max_pixels=LIMIT), aspect)


def names_of(prints: list[Fingerprint]) -> list[list[str]]:
    return [[name for _, name in group.members] for group in find_duplicates(prints)]


def test_other_files_of_the_same_picture_are_found(tmp_path: Path) -> None:
    picture = scene(1)
    picture.save(tmp_path / "a.png")
    picture.save(tmp_path / "b.jpg", quality=50)
    picture.resize((320, 240)).save(tmp_path / "c.jpg")
    picture.resize((213, 160)).save(tmp_path / "d.webp")
    picture.convert("L").save(tmp_path / "e.png")
    prints = [fingerprint(tmp_path / name) for name in ("a.png", "b.jpg", "c.jpg", "d.webp", "e.png")]
    assert names_of(prints) == [["a.png", "b.jpg", "c.jpg", "d.webp", "e.png"]]


def test_similar_pictures_are_not(tmp_path: Path) -> None:
    picture = scene(1)
    changed = picture.copy()
    changed.paste((250, 20, 20), (200, 150, 330, 280))  # something has come into view
    others = {
        "object.png": changed,
        "mirrored.png": picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "cropped.png": picture.crop((60, 45, 640, 480)),
        "darker.png": ImageEnhance.Brightness(picture).enhance(0.6),
        "stretched.png": picture.resize((640, 300)),
        "other.png": scene(2),
    }
    picture.save(tmp_path / "a.png")
    for name, other in others.items():
        other.save(tmp_path / name)
    prints = [fingerprint(tmp_path / name) for name in ("a.png", *others)]
    assert names_of(prints) == []


def test_flat_pictures_are_the_same_only_if_their_shade_is(tmp_path: Path) -> None:
    for name, shade in {"a.png": 90, "b.png": 90, "c.png": 92}.items():
        Image.new("L", (64, 48), shade).save(tmp_path / name)
    assert names_of([fingerprint(tmp_path / name) for name in ("a.png", "b.png", "c.png")]) == [
        ["a.png", "b.png"]
    ]


def test_groups_over_splits_come_first(tmp_path: Path) -> None:
    for seed in (1, 2):
        for copy in "ab":
            scene(seed).save(tmp_path / f"{seed}{copy}.png")
    splits = {"1a": "train", "1b": "train", "2a": "train", "2b": "val"}
    groups = find_duplicates([fingerprint(tmp_path / f"{name}.png", split) for name, split in splits.items()])
    assert [group.splits for group in groups] == [("train", "val"), ("train",)]
    assert groups[0].members == (("train", "2a.png"), ("val", "2b.png"))
    assert groups[0].to_dict()["bits"] == 0


def test_few_pictures() -> None:
    one = Fingerprint("train", "a.png", np.zeros(THUMBNAIL, np.float32), 1.0)
    assert find_duplicates([]) == find_duplicates([one]) == ()


def test_many_pictures_find_their_copies() -> None:
    """Far from each other in the order of means or not: each copy is found, and nothing else."""
    generator = np.random.default_rng(0)
    thumbnails = generator.integers(0, 256, (300, *THUMBNAIL)).astype(np.float32)
    copies = np.clip(thumbnails[:50] + generator.normal(0, 1, (50, *THUMBNAIL)), 0, 255).astype(np.float32)
    prints = [Fingerprint("train", f"{index}", each, 1.5) for index, each in enumerate(thumbnails)]
    prints += [Fingerprint("val", f"copy {index}", each, 1.5) for index, each in enumerate(copies)]
    assert sorted(names_of(prints), key=lambda names: int(names[0])) == [
        [f"{index}", f"copy {index}"] for index in range(50)
    ]


def test_real_pictures() -> None:
    """Two frames of a drone that stood still are the same; the other 498 pictures are not."""
    files = [
        file
        for folder in ("tiny_coco", "bccd_coco", "aerial_cars")
        for file in sorted(data_set(folder).rglob("*"))
        if file.suffix in (".jpg", ".png")
    ]
    assert len(files) == 500
    assert names_of([fingerprint(file) for file in files]) == [["DJI-00760-00001.jpg", "DJI-00760-00002.jpg"]]

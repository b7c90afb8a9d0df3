"""The built-in data set of drawn scenes (scenes.py) in COCO layout, for demonstrations and tests offline.

For a given picture size and kind of scene, picture i of a split depends only on (seed, split, i). So files
are identical byte for byte on one machine, and a larger set begins with the pictures of a smaller one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..drawing import encoded
from ..errors import UserError
from ..files import replacing
from .scenes import CLASS_NAMES, Scene, draw_scene

JPEG_QUALITY = 95


def generate(
    root: Path | str,
    *,
    train: int = 400,
    val: int = 100,
    image_size: tuple[int, int] = (240, 320),
    seed: int = 0,
    small_objects: bool = False,
) -> Path:
    """Write a data set of drawn scenes in COCO layout, and return the absolute path of `root`.

    The annotations are in `annotations/instances_train.json` and `annotations/instances_val.json`, and the
    pictures are in `train/` and `val/`. Category ids are 1..6. The `area` of an object is the number of its
    visible pixels, and its box encloses these pixels. `root` is written completely or not at all.

    Args:
        root: a folder that does not exist yet or is empty.
        train, val: the numbers of pictures, at least 1 each.
        image_size: the height and the width of the pictures in pixels, at least 64 each.
        seed: the seed of everything that is random in the pictures.
        small_objects: True to draw more objects per picture, most of them small.

    Raises:
        UserError: if `root` is a file, is not empty or cannot be written, or if a number of pictures or
            `image_size` is too small.
    """
    root = Path(root).absolute()
    if train < 1 or val < 1:
        raise UserError(
            f"a data set needs train and val pictures: request at least 1 of each, not {train} and {val}."
        )
    if min(image_size) < 64:
        raise UserError(f"pictures of {image_size[1]}x{image_size[0]} are too small: take at least 64x64.")
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(f"{root} is not empty: remove it or name another folder for the drawn data.")
    with replacing(root) as draft:
        (draft / "annotations").mkdir(parents=True)
        for number, (split, count) in enumerate({"train": train, "val": val}.items()):
            seeds = np.random.SeedSequence(seed % 2**64, spawn_key=(number,)).spawn(count)
            scenes = (draw_scene(np.random.default_rng(one), image_size, small_objects) for one in seeds)
            _write_split(draft, split, scenes)
    return root


def _write_split(root: Path, split: str, scenes: Iterable[Scene]) -> None:
    (root / split).mkdir()
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for image_id, scene in enumerate(scenes, start=1):
        width, height = scene.picture.size
        file_name = f"{image_id:06d}.jpg"
        # no chroma subsampling, which would smear the colours of 8-pixel objects
        content = encoded(scene.picture, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        (root / split / file_name).write_bytes(content)
        images.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        for label, (x0, y0, x1, y1), area in zip(
            scene.labels.tolist(), scene.boxes_xyxy.tolist(), scene.areas.tolist(), strict=True
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": label + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": area,
                    "iscrowd": 0,
                }
            )
    document = {
        "info": {"description": "shapes drawn by deformable_detr", "version": "1"},
        "categories": [{"id": index + 1, "name": name} for index, name in enumerate(CLASS_NAMES)],
        "images": images,
        "annotations": annotations,
    }
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(document), encoding="utf-8")

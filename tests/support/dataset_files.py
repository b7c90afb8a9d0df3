"""Writers of small data sets in the three layouts, whole or broken as a test requires."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from PIL import Image

Box = tuple[float, float, float, float]  # xyxy, pixels
Objects = Sequence[tuple[str, Box]]


def write_image(path: Path, size: tuple[int, int] = (48, 64), *, orientation: int = 1) -> Path:
    """Write a grey picture of (H, W) stored pixels, with an EXIF orientation unless that is 1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation != 1:
        exif[0x0112] = orientation
    Image.new("RGB", (size[1], size[0]), (90, 90, 90)).save(path, exif=exif)
    return path


def coco_content(images: Mapping[str, Objects], size: tuple[int, int] = (48, 64)) -> dict[str, Any]:
    """Return the JSON of one split. Category ids are 7, 10, 13, … in the order of the sorted names."""
    names = sorted({name for objects in images.values() for name, _ in objects} or {"thing"})
    ids = {name: 7 + 3 * index for index, name in enumerate(names)}
    annotations: list[dict[str, Any]] = []
    for image_id, objects in enumerate(images.values(), start=1):
        for name, (x0, y0, x1, y1) in objects:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": ids[name],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                }
            )
    return {
        "images": [
            {"id": image_id, "file_name": file_name, "height": size[0], "width": size[1]}
            for image_id, file_name in enumerate(images, start=1)
        ],
        "annotations": annotations,
        "categories": [{"id": ids[name], "name": name} for name in names],
    }


def write_coco(
    root: Path, content: Mapping[str, Any], split: str = "train", size: tuple[int, int] = (48, 64)
) -> Path:
    """Write annotations/instances_SPLIT.json and every image that it names into SPLIT/."""
    for row in content["images"]:
        write_image(root / split / row["file_name"], size)
    return write_json(root / "annotations" / f"instances_{split}.json", content)


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def voc_xml(file_name: str, objects: Objects, size: tuple[int, int] = (48, 64)) -> str:
    lines = [
        "<annotation>",
        f"<filename>{escape(file_name)}</filename>",
        f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>",
    ]
    for name, (x0, y0, x1, y1) in objects:
        lines += [
            "<object>",
            f"<name>{escape(name)}</name><difficult>0</difficult>",
            f"<bndbox><xmin>{x0!r}</xmin><ymin>{y0!r}</ymin><xmax>{x1!r}</xmax><ymax>{y1!r}</ymax></bndbox>",
            "</object>",
        ]
    return "\n".join([*lines, "</annotation>"])


def write_voc(
    root: Path,
    splits: Mapping[str, Mapping[str, str]],
    size: tuple[int, int] = (48, 64),
) -> Path:
    """Write a Pascal VOC data set with the images NAME.jpg.

    `splits` maps each split to its images, and each image's NAME to the text of its XML file.
    """
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for split, texts in splits.items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(texts))
        for name, xml in texts.items():
            (root / "Annotations" / f"{name}.xml").write_text(xml, encoding="utf-8")
            write_image(root / "JPEGImages" / f"{name}.jpg", size)
    return root


def write_yolo(
    root: Path,
    splits: Mapping[str, Mapping[str, str | None]],
    names: Sequence[str] = ("cat", "dog"),
    size: tuple[int, int] = (48, 64),
) -> Path:
    """Write a YOLO data set with the images images/SPLIT/NAME.jpg.

    `splits` maps each split to its images, and each image's NAME to the text of its label file, or to None
    for no file.
    """
    lines = [f"{split}: images/{split}" for split in splits]
    lines += ["names:", *(f"  {index}: {json.dumps(name)}" for index, name in enumerate(names))]
    root.mkdir(parents=True, exist_ok=True)
    (root / "data.yaml").write_text("\n".join(lines), encoding="utf-8")
    for split, labels in splits.items():
        (root / "labels" / split).mkdir(parents=True, exist_ok=True)
        (root / "images" / split).mkdir(parents=True, exist_ok=True)
        for name, text in labels.items():
            write_image(root / "images" / split / f"{name}.jpg", size)
            if text is not None:
                (root / "labels" / split / f"{name}.txt").write_text(text)
    return root

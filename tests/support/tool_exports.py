"""Small data sets as annotation tools export them: the same two pictures, each with one cat and one dog.

Each function uses its tool's names of files and fields and its order of columns. Those of VoTT come from its
code, and the others from examples and descriptions of the formats.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.support.dataset_files import write_image, write_json

PICTURES = ("a.jpg", "b c.jpg")
CAT_XYXY, DOG_XYXY = (4.0, 6.0, 24.0, 18.0), (32.0, 12.0, 56.0, 36.0)
_HEIGHT, _WIDTH = 48, 64


def _coco(
    names: Sequence[str], *, as_id: Callable[[int], Any] = int, size: Callable[[int], Any] = int, **extra: Any
) -> dict[str, Any]:
    annotations: list[dict[str, Any]] = []
    for image_id in range(1, len(names) + 1):
        for category_id, (x0, y0, x1, y1) in enumerate((CAT_XYXY, DOG_XYXY), start=1):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": as_id(image_id),
                    "category_id": category_id,
                    "segmentation": [],
                    "area": (x1 - x0) * (y1 - y0),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "iscrowd": 0,
                    **extra,
                }
            )
    return {
        "info": {"description": "", "year": 2026},
        "licenses": [{"id": 0, "name": "", "url": ""}],
        "categories": [{"id": 1, "name": "cat", "supercategory": ""}, {"id": 2, "name": "dog"}],
        "images": [
            {"id": number, "file_name": name, "width": size(_WIDTH), "height": size(_HEIGHT)}
            for number, name in enumerate(names, start=1)
        ],
        "annotations": annotations,
    }


def _rows(names: Sequence[str] = ("0", "1"), after: str = "") -> str:
    rows = []
    for name, (x0, y0, x1, y1) in zip(names, (CAT_XYXY, DOG_XYXY), strict=True):
        cx, cy, w, h = (
            (x0 + x1) / 2 / _WIDTH,
            (y0 + y1) / 2 / _HEIGHT,
            (x1 - x0) / _WIDTH,
            (y1 - y0) / _HEIGHT,
        )
        rows.append(f"{name} {cx:.6f} {cy:.6f} {w:.6f} {h:.6f}{after}")
    return "\n".join(rows) + "\n"


def _xml(file_name: str, size: bool = True) -> str:
    objects = "".join(
        f"<object><name>{name}</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>"
        f"<bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for name, (x0, y0, x1, y1) in (("cat", CAT_XYXY), ("dog", DOG_XYXY))
    )
    sides = f"<size><width>{_WIDTH}</width><height>{_HEIGHT}</height><depth>3</depth></size>" if size else ""
    return f"<annotation><folder></folder><filename>{file_name}</filename>{sides}{objects}</annotation>"


def _pictures(folder: Path, names: Sequence[str] = PICTURES) -> None:
    for name in names:
        write_image(folder / name, (_HEIGHT, _WIDTH))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def cvat_coco(root: Path) -> None:
    _pictures(root / "images" / "default")
    write_json(
        root / "annotations" / "instances_default.json", _coco(PICTURES, attributes={"occluded": False})
    )


def label_studio_coco(root: Path) -> None:
    _pictures(root / "images")
    write_json(root / "result.json", _coco([f"images\\{name}" for name in PICTURES]))


def label_studio_coco_of_a_server(root: Path) -> None:
    _pictures(root / "images")
    write_json(
        root / "result.json", _coco([f"/label-studio/data/media/upload/3/{name}" for name in PICTURES])
    )


def roboflow_coco(root: Path) -> None:
    for split in ("train", "valid"):
        _pictures(root / split)
        write_json(root / split / "_annotations.coco.json", _coco(PICTURES))


def labelme_coco(root: Path) -> None:
    _pictures(root / "JPEGImages")
    write_json(root / "annotations.json", _coco([f"JPEGImages/{name}" for name in PICTURES]))


def via_coco(root: Path) -> None:
    _pictures(root)
    write_json(root / "via_export_coco.json", _coco(PICTURES, as_id=str))


def makesense_coco(root: Path) -> None:
    _pictures(root / "images")
    write_json(root / "labels_my-project-name_2026-11-26-01-02-03.json", _coco(PICTURES))


def fiftyone_coco(root: Path) -> None:
    for split in ("train", "validation"):
        _pictures(root / split / "data")
        write_json(root / split / "labels.json", _coco(PICTURES))


def pandas_coco(root: Path) -> None:
    _pictures(root / "train")
    content = _coco(PICTURES, as_id=float, size=float, iscrowd=float("nan"))
    for row in content["annotations"]:
        row["bbox"] = json.dumps(row["bbox"])
    write_json(root / "annotations" / "train.json", content)


def capital_coco(root: Path) -> None:
    for split in ("Train", "Validation"):
        _pictures(root / "images" / split.lower())
        write_json(root / "annotations" / f"instances_{split}.json", _coco(PICTURES))


def cvat_yolo_1_1(root: Path) -> None:
    _pictures(root / "obj_train_data" / "sub")
    for name in PICTURES:
        _write(root / "obj_train_data" / "sub" / f"{Path(name).stem}.txt", _rows())
    _write(root / "obj.names", "cat\ndog\n")
    _write(
        root / "obj.data", "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n"
    )
    _write(root / "train.txt", "".join(f"data/obj_train_data/sub/{name}\n" for name in PICTURES))


def cvat_ultralytics(root: Path) -> None:
    for split in ("Train", "Validation"):
        _pictures(root / "images" / split)
        for name in PICTURES:
            _write(root / "labels" / split / f"{Path(name).stem}.txt", _rows(after=" 17"))
        _write(root / f"{split}.txt", "".join(f"data/images/{split}/{name}\n" for name in PICTURES))
    _write(
        root / "data.yaml",
        "Train: Train.txt\nValidation: Validation.txt\nnames:\n  0: cat\n  1: dog\npath: .\n",
    )


def label_studio_yolo(root: Path) -> None:
    _pictures(root / "images")
    for name in PICTURES:
        _write(root / "labels" / f"{Path(name).stem}.txt", _rows())
    _write(root / "classes.txt", "cat\ndog\n")
    write_json(root / "notes.json", {"categories": [], "info": {"year": 2026}})


def labelimg_yolo(root: Path) -> None:
    _pictures(root)
    for name in PICTURES:
        _write(root / f"{Path(name).stem}.txt", _rows())
    _write(root / "classes.txt", "cat\ndog\n")


def roboflow_yolo(root: Path) -> None:
    for split in ("train", "valid"):
        _pictures(root / split / "images")
        for name in PICTURES:
            _write(root / split / "labels" / f"{Path(name).stem}.txt", _rows())
    lines = ("train: ../train/images", "val: ../valid/images", "test: ../test/images", "", "nc: 2")
    _write(root / "data.yaml", "\n".join([*lines, "names: ['cat', 'dog']", "roboflow:\n  version: 1\n"]))


def roboflow_darknet(root: Path) -> None:
    for split in ("train", "valid"):
        _pictures(root / split)
        _write(root / split / "_darknet.labels", "cat\ndog\n")
        for name in PICTURES:
            _write(root / split / f"{Path(name).stem}.txt", _rows())


def fiftyone_yolov5(root: Path) -> None:
    for split in ("train", "val"):
        _pictures(root / "images" / split)
        for name in PICTURES:
            _write(root / "labels" / split / f"{Path(name).stem}.txt", _rows())
    _write(
        root / "dataset.yaml",
        "path: /home/me/export\ntrain: ./images/train/\nval: ./images/val/\nnames:\n  0: cat\n  1: dog\n",
    )


def fiftyone_yolov4(root: Path) -> None:
    _pictures(root / "data")
    for name in PICTURES:
        _write(root / "data" / f"{Path(name).stem}.txt", _rows())
    _write(root / "obj.names", "cat\ndog\n")
    _write(root / "images.txt", "".join(f"data/{name}\n" for name in PICTURES))


def cvat_voc(root: Path) -> None:
    _pictures(root / "JPEGImages" / "sub")
    for name in PICTURES:
        _write(root / "Annotations" / "sub" / f"{Path(name).stem}.xml", _xml(f"sub/{name}"))
    _write(root / "labelmap.txt", "# label:color_rgb:parts:actions\ncat:::\ndog:::\n")
    _write(root / "ImageSets" / "Main" / "default.txt", 'sub/a\n"sub/b c"\n')


def vott_voc(root: Path) -> None:
    _pictures(root / "JPEGImages")
    for name in PICTURES:
        _write(root / "Annotations" / f"{Path(name).stem}.xml", _xml(name))
    for tag in ("cat", "big dog"):
        _write(root / "ImageSets" / "Main" / f"{tag}_train.txt", "a.jpg 1\r\nb c.jpg -1")
        _write(root / "ImageSets" / "Main" / f"{tag}_val.txt", "a.jpg 1")


def vott_voc_without_split(root: Path) -> None:
    vott_voc(root)
    for file in (root / "ImageSets" / "Main").iterdir():
        file.unlink()
    for tag in ("cat", "big_dog"):
        _write(root / "ImageSets" / "Main" / f"{tag}.txt", "a.jpg 1\nb c.jpg -1")


def roboflow_voc(root: Path) -> None:
    for split in ("train", "valid"):
        _pictures(root / split)
        for name in PICTURES:
            _write(root / split / f"{Path(name).stem}.xml", _xml(name))


def labelimg_voc(root: Path) -> None:
    _pictures(root)
    for name in PICTURES:
        _write(root / f"{Path(name).stem}.xml", _xml(name))


def label_studio_voc(root: Path) -> None:
    _pictures(root / "images")
    for name in PICTURES:
        _write(root / "Annotations" / f"{Path(name).stem}.xml", _xml(name))


def labelme_voc(root: Path) -> None:
    _pictures(root / "JPEGImages")
    for name in PICTURES:
        _write(root / "Annotations" / f"{Path(name).stem}.xml", _xml(name))
    _write(root / "class_names.txt", "_background_\ncat\ndog\n")


def makesense_voc(root: Path) -> None:
    _pictures(root / "images")
    for name in PICTURES:
        _write(root / "labels" / f"{Path(name).stem}.xml", f'<?xml version="1.0" ?>{_xml(name)}')


def fiftyone_voc(root: Path) -> None:
    _pictures(root / "data")
    for name in PICTURES:
        _write(root / "labels" / f"{Path(name).stem}.xml", _xml(name, size=False))


EXPORTS: dict[Callable[[Path], None], tuple[str, tuple[str, ...]]] = {
    cvat_coco: ("coco", ("default",)),
    label_studio_coco: ("coco", ("result",)),
    label_studio_coco_of_a_server: ("coco", ("result",)),
    roboflow_coco: ("coco", ("train", "valid")),
    labelme_coco: ("coco", ("annotations",)),
    via_coco: ("coco", ("via_export",)),
    makesense_coco: ("coco", ("my-project-name_2026-11-26-01-02-03",)),
    fiftyone_coco: ("coco", ("train", "validation")),
    pandas_coco: ("coco", ("train",)),
    capital_coco: ("coco", ("Train", "Validation")),
    cvat_yolo_1_1: ("yolo", ("train",)),
    cvat_ultralytics: ("yolo", ("train", "val")),
    label_studio_yolo: ("yolo", ("all",)),
    labelimg_yolo: ("yolo", ("all",)),
    roboflow_yolo: ("yolo", ("train", "val")),
    roboflow_darknet: ("yolo", ("train", "val")),
    fiftyone_yolov5: ("yolo", ("train", "val")),
    fiftyone_yolov4: ("yolo", ("all",)),
    cvat_voc: ("voc", ("default",)),
    vott_voc: ("voc", ("train", "val")),
    vott_voc_without_split: ("voc", ("all",)),
    roboflow_voc: ("voc", ("train", "valid")),
    labelimg_voc: ("voc", ("all",)),
    label_studio_voc: ("voc", ("all",)),
    labelme_voc: ("voc", ("all",)),
    makesense_voc: ("voc", ("all",)),
    fiftyone_voc: ("voc", ("all",)),
}

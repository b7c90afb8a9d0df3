"""Fetch public data sets, each from a pinned commit of its repository, in the layout that the docs name.

    scripts/get_data.sh bccd tiny_coco

A set is complete or absent: it is created next to its target, its digest is compared, and then it is renamed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
ARCHIVES = "https://codeload.github.com"  # BASE/OWNER/NAME/tar.gz/COMMIT
SPLITS = ("train", "val", "test")
AERIAL_NAMES = ("car", "truck", "bus", "minibus", "cyclist")
AERIAL_TRAIN = (
    *(f"DJI-00760-{number:05}.jpg" for number in (1, 2, 3, 13, 14, 21, 22, 23, 32, 33, 39)),
    *(f"DJI_0005-{number:04}.jpg" for number in (18, 71, 118, 151, 169, 185, 203)),
    *(f"MunichStreet02-MOS{number}.png" for number in (74, 79, 84, 89)),
    *(f"MOS{number}.png" for number in (74, 79, 84, 89)),
)
AERIAL_VAL = (
    *(f"DJI_0013-{number:04}.jpg" for number in (23, 28, 36, 41)),
    *(f"DJI_0762-{number:05}.jpg" for number in (1, 13, 23, 31)),
    *("MOS155.png", "MOS168.png"),
)


class DataError(Exception):
    """Raised if data cannot be fetched; the text is a sentence for the user."""


@dataclass(frozen=True)
class DataSet:
    """A data set. `make` fills a new folder from the unpacked repository; `digest` is the folder's
    `digest_of`."""

    repository: str
    commit: str
    licence: str
    digest: str
    make: Callable[[Path, Path], None]


def make_bccd_voc(source: Path, target: Path) -> None:
    for name in ("Annotations", "ImageSets", "JPEGImages"):
        shutil.copytree(source / "BCCD" / name, target / name)
    shutil.copy(source / "LICENSE", target)


def make_bccd_coco(source: Path, target: Path) -> None:
    """Convert Pascal's XML to COCO. Boxes without an area are dropped and listed in `repairs.json`."""
    voc = source / "BCCD"
    names = ("RBC", "WBC", "Platelets")
    repairs = {}
    for split in SPLITS:
        images, objects = [], []
        dropped = []
        for stem in sorted((voc / "ImageSets" / "Main" / f"{split}.txt").read_text().split()):
            file_name = f"{stem}.jpg"
            tree = ElementTree.parse(voc / "Annotations" / f"{stem}.xml").getroot()
            images.append((file_name, *(_number(tree, f"size/{side}") for side in ("width", "height"))))
            for each in tree.iter("object"):
                name = each.findtext("name", "")
                box = [_number(each, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
                if box[2] <= box[0] or box[3] <= box[1]:
                    why = "zero or negative width/height"
                    xyxy = [float(value) for value in box]
                    dropped.append({"file_name": file_name, "category": name, "xyxy": xyxy, "why": why})
                else:
                    objects.append((len(images), names.index(name) + 1, box))
            _copy(voc / "JPEGImages" / file_name, target / split / file_name)
        repairs[split] = {"dropped": dropped, "clipped": []}
        url = "https://github.com/Shenggan/BCCD_Dataset"
        document = _coco(
            {"description": f"BCCD blood cell detection, {split} split", "url": url, "license": "MIT"},
            {"name": "MIT", "url": f"{url}/blob/master/LICENSE"},
            [{"file_name": name, "width": width, "height": height} for name, width, height in images],
            objects,
            dict(enumerate(names, start=1)),
        )
        _write(target / "annotations" / f"instances_{split}.json", document)
    text = json.dumps(repairs, indent=1)
    (target / "annotations" / "repairs.json").write_text(text, encoding="utf-8")
    shutil.copy(source / "LICENSE", target)


def make_tiny_coco(source: Path, target: Path) -> None:
    for split in ("train2017", "val2017"):
        shutil.copytree(source / "tiny_coco" / split, target / split)
        name = f"instances_{split}.json"
        _copy(source / "tiny_coco" / "annotations" / name, target / "annotations" / name)
    shutil.copy(source / "LICENSE", target / "LICENSE.repo")


def make_aerial_cars(source: Path, target: Path) -> None:
    """Write some of the pictures in YOLO's layout, unchanged, and in COCO's with boxes clipped to the
    picture."""
    from PIL import Image

    for split, names in (("train", AERIAL_TRAIN), ("val", AERIAL_VAL)):
        images: list[dict[str, Any]] = []
        objects = []
        for name in names:
            _copy(source / name, target / "images" / split / name)
            labels = source / Path(name).with_suffix(".txt")
            _copy(labels, target / "labels" / split / labels.name)
            with Image.open(source / name) as picture:
                width, height = picture.size
            origin = "Y. Kharuzhy / Minsk OSM, CC BY-SA" if name.startswith("DJI") else "KIT AIS, CC BY 3.0"
            images.append({"file_name": name, "width": width, "height": height, "source": origin})
            for line in labels.read_text().splitlines():
                label, x, y, w, h = (float(word) for word in line.split())
                x0, x1 = x * width - w * width / 2, x * width + w * width / 2
                y0, y1 = y * height - h * height / 2, y * height + h * height / 2
                box = [max(0.0, x0), max(0.0, y0), min(width, x1), min(height, y1)]
                objects.append((len(images), int(label), box))
        url = "https://github.com/jekhor/aerial-cars-dataset"
        document = _coco(
            {
                "description": f"Aerial cars, {split} subset; category ids are 0-based on purpose",
                "url": url,
                "license": "mixed",
            },
            {
                "name": "CC BY-SA, version not stated (Minsk footage) / CC BY 3.0 (KIT AIS frames)",
                "url": url,
            },
            images,
            objects,
            dict(enumerate(AERIAL_NAMES)),
        )
        _write(target / "annotations" / f"instances_{split}.json", document)
    lines = ["path: .", "train: images/train", "val: images/val", "names:"]
    lines += [f"  {index}: {name}" for index, name in enumerate(AERIAL_NAMES)]
    (target / "data.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    shutil.copy(source / "aerial.names", target)
    shutil.copy(source / "README.md", target / "README.origin.md")


BCCD = ("Shenggan/BCCD_Dataset", "d272fb14cdff6e473fafeeeba32aba5f560e9e43", "MIT")
SETS = {
    "bccd_voc": DataSet(
        *BCCD,
        digest="5f5a6b00066a74ecbf6e2fd6b98dea243f9b517fc6ca2a5c84e23c1b0fd39a5e",
        make=make_bccd_voc,
    ),
    "bccd_coco": DataSet(
        *BCCD,
        digest="c142f327bd449f52951f84cca29a9fe49c413174c6e76c96c77a240777b95260",
        make=make_bccd_coco,
    ),
    "tiny_coco": DataSet(
        "lizhogn/tiny_coco_dataset",
        "68523ddd6c27f9ba5d2f0caf7f6fe95cc2c99311",
        "annotations CC BY 4.0, a Flickr licence for each photo",
        digest="e01206e18c8e18b35726c7fb61d587242f3ae4744c6b7b33f5cdc83aff352821",
        make=make_tiny_coco,
    ),
    "aerial_cars": DataSet(
        "jekhor/aerial-cars-dataset",
        "d2ed927fe2b06e4794e90d6320152b940808ddd9",
        "CC BY-SA and CC BY 3.0",
        digest="2498bb26092ee4733fdb2eef00c8f43f9b08e0b3ab371fb294cf57b2bbf31ca9",
        make=make_aerial_cars,
    ),
}
GROUPS = {"bccd": ("bccd_coco", "bccd_voc"), "all": tuple(SETS)}


def fetch(names: Iterable[str], target: Path, archives: str = ARCHIVES) -> list[str]:
    """Fetch data sets into folders of `target`, and return the names of those that were not there before.

    Raises:
        DataError: if an archive cannot be read, or its content differs from the pinned content.
    """
    made = []
    with tempfile.TemporaryDirectory() as temporary:
        for name in names:
            if (target / name).exists():
                continue
            one = SETS[name]
            source = _unpacked(one, archives, Path(temporary))
            target.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target, prefix=f".{name}.") as beside:
                folder = Path(beside) / name
                folder.mkdir()
                one.make(source, folder)
                if (found := digest_of(folder)) != one.digest:
                    raise DataError(
                        f"{name} from {one.repository} at {one.commit} has the digest {found}, not "
                        f"{one.digest}: the archive is damaged or has been replaced, so nothing was kept."
                    )
                folder.rename(target / name)
            made.append(name)
    return made


def digest_of(folder: Path) -> str:
    """Return the SHA-256 of the names and contents of a folder's files."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix()):
        if path.is_file():
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            total.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return total.hexdigest()


def _unpacked(one: DataSet, archives: str, folder: Path) -> Path:
    """Download the repository's files, once for all sets that use them."""
    place = folder / one.commit
    if not place.exists():
        url = f"{archives}/{one.repository}/tar.gz/{one.commit}"
        print(f"fetching {url} ({one.licence})", file=sys.stderr)
        try:
            with (
                urllib.request.urlopen(url, timeout=60) as answer,
                tarfile.open(fileobj=answer, mode="r|gz") as archive,
            ):
                archive.extractall(place, filter="data")
        except (OSError, tarfile.TarError) as error:
            raise DataError(f"{url} cannot be fetched ({error}): try again later.") from error
    (root,) = place.iterdir()  # the archive's only folder: NAME-COMMIT
    return root


def _coco(
    info: dict[str, str],
    licence: dict[str, str],
    images: Sequence[dict[str, Any]],
    objects: Sequence[tuple[int, int, Sequence[float]]],
    names: dict[int, str],
) -> dict[str, Any]:
    """Build COCO's document from `objects`: image id, category id, (x0, y0, x1, y1) in pixels."""
    annotations = []
    for number, (image_id, category_id, (x0, y0, x1, y1)) in enumerate(objects, start=1):
        box = [_rounded(value) for value in (x0, y0, x1 - x0, y1 - y0)]
        annotations.append(
            {
                "id": number,
                "image_id": image_id,
                "category_id": category_id,
                "bbox": box,
                "area": _rounded((x1 - x0) * (y1 - y0)),
                "iscrowd": 0,
            }
        )
    listed = []
    for number, image in enumerate(images, start=1):
        listed.append({"id": number, **image, "license": 1})
        if "source" in image:
            listed[-1]["source"] = listed[-1].pop("source")  # categories after the licence
    return {
        "info": {
            "description": info["description"],
            "url": info["url"],
            "version": "1.0",
            "year": 2018,
            "contributor": "see url",
            "license": info["license"],
        },
        "licenses": [{"id": 1, **licence}],
        "images": listed,
        "annotations": annotations,
        "categories": [{"id": key, "name": name, "supercategory": "none"} for key, name in names.items()],
    }


def _rounded(value: float) -> float:
    """Round to a thousandth of a pixel; whole numbers become integers."""
    short = round(value, 3)
    return int(short) if short == int(short) else short


def _number(tree: ElementTree.Element, path: str) -> int:
    return int(tree.findtext(path, ""))


def _write(path: Path, document: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document, separators=(",", ":")), encoding="utf-8")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/get_data.sh", description="Fetch public data sets at pinned commits, with checksums."
    )
    known = [*SETS, *GROUPS]
    parser.add_argument("names", nargs="+", choices=known, metavar="NAME", help=", ".join(known))
    parser.add_argument("--to", type=Path, default=ROOT / "data", help="a folder (default: data/)")
    parser.add_argument("--from", dest="archives", default=ARCHIVES, help="the URL of the archives' host")
    options = parser.parse_args(arguments)
    names = dict.fromkeys(name for each in options.names for name in GROUPS.get(each, (each,)))
    try:
        made = fetch(names, options.to, options.archives)
    except DataError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    for name in names:
        print(f"{options.to / name}{'' if name in made else ' was there already'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

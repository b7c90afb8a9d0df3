"""Data sets that are broken in one way each, and what `deformable-detr inspect` says of it.

Each case has its own message, which names the place; where nothing can be read, the exit code is 2.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deformable_detr.cli import main
from deformable_detr.data.images import read_header
from deformable_detr.inspection import DataReport, inspect
from tests.support.dataset_files import (
    coco_content,
    voc_xml,
    write_coco,
    write_image,
    write_json,
    write_voc,
    write_yolo,
)

CAT, DOG = ("cat", (1.0, 2.0, 11.0, 22.0)), ("dog", (5.0, 5.0, 50.0, 40.0))
INSTANCES = "annotations/instances_train.json"


@dataclass(frozen=True)
class Case:
    """`make` writes the data set; `kind`, `where`, `says`: of what is found. `fatal`: nothing to inspect."""

    make: Callable[[Path], None]
    kind: str
    where: str
    says: str
    fatal: bool = False


# --- makers -----------------------------------------------------------------------------------------------


def paint(root: Path) -> None:
    """Every picture of a data set gets pixels of its own: they would be the same picture otherwise."""
    for number, file in enumerate(sorted(root.rglob("*.jpg"))):
        noise = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        size = read_header(file).stored_size
        Image.fromarray(noise).resize((size[1], size[0])).save(file)


def coco(change: Callable[[dict[str, Any]], object] = lambda content: None) -> Any:
    """Train and val of two pictures each; `change` gets the content of train, whose pictures are there."""

    def make(root: Path) -> None:
        for split in ("train", "val"):
            content = coco_content({f"{split}_a.jpg": [CAT, DOG], f"{split}_b.jpg": [DOG]})
            for row in (*content["categories"], *content["annotations"]):  # ids 1 and 2
                key = "id" if "name" in row else "category_id"
                row[key] = {7: 1, 10: 2}[row[key]]
            write_coco(root, content, split)
            if split == "train":
                change(content)
            text = json.dumps(content, indent=1)
            (root / "annotations" / f"instances_{split}.json").write_text(text, encoding="utf-8")
        paint(root)

    return make


def box(*values: Any) -> Any:
    return coco(lambda content: content["annotations"][0].update(bbox=list(values)))


def annotation(**values: Any) -> Any:
    return coco(lambda content: content["annotations"][1].update(values))


def add(key: str, row: Any) -> Any:
    return coco(lambda content: content[key].append(row))


def image_file(change: Callable[[Path], object]) -> Any:
    def make(root: Path) -> None:
        coco()(root)
        change(root / "train" / "train_a.jpg")

    return make


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-200])


def bomb(root: Path) -> None:
    """30000 x 30000 pixels of nothing: a file of some bytes, gigabytes when it is decoded."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    def grow(content: dict[str, Any]) -> None:
        content["images"][0].update(height=30_000, width=30_000)

    coco(grow)(root)
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    picture = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )
    (root / "train" / "train_a.jpg").write_bytes(picture)


def categories(*rows: tuple[int, str]) -> Any:
    """In both splits; the objects keep ids 1 and 2."""

    def make(root: Path) -> None:
        coco()(root)
        for split in ("train", "val"):
            file = root / "annotations" / f"instances_{split}.json"
            content = json.loads(file.read_text())
            content["categories"] = [{"id": number, "name": name} for number, name in rows]
            used = [number for number, _ in rows]
            for row in content["annotations"]:
                row["category_id"] = used[row["category_id"] - 1]
            write_json(file, content)

    return make


def only_train(text: str | bytes) -> Any:
    """A single annotation file with this text."""

    def make(root: Path) -> None:
        coco()(root)
        (root / "annotations" / "instances_val.json").unlink()
        file = root / INSTANCES
        file.write_bytes(text) if isinstance(text, bytes) else file.write_text(text)

    return make


def copied(source: str, target: str) -> Any:
    """The same picture once more, as JPEG of another quality."""

    def make(root: Path) -> None:
        coco()(root)
        with Image.open(root / source) as picture:
            picture.save(root / target, quality=60)

    return make


def crowd_of(number: int) -> Any:
    def fill(content: dict[str, Any]) -> None:
        first = content["annotations"][0]
        for index in range(number):
            bbox = [index % 50, index // 50, 5, 5]
            content["annotations"].append({**first, "id": 100 + index, "bbox": bbox, "area": 25})

    return coco(fill)


def without(path: str) -> Any:
    def make(root: Path) -> None:
        coco()(root)
        place = root / path
        shutil.rmtree(place) if place.is_dir() else place.unlink()

    return make


def yolo(row: str = "0 0.5 0.5 0.4 0.4", yaml: Callable[[str], str] = lambda text: text) -> Any:
    """Train and val of two pictures each; the first row of train/a is `row`."""

    def make(root: Path) -> None:
        good = "1 0.3 0.3 0.2 0.2\n"
        both = f"0 0.6 0.6 0.2 0.2\n{good}"
        write_yolo(root, {"train": {"a": f"{row}\n{good}", "b": good}, "val": {"c": both, "d": good}})
        (root / "data.yaml").write_text(yaml((root / "data.yaml").read_text()))
        paint(root)

    return make


def yolo_file(name: str, content: str | bytes) -> Any:
    def make(root: Path) -> None:
        yolo()(root)
        data = content.encode() if isinstance(content, str) else content
        (root / name).write_bytes(data)

    return make


def voc(xml: Callable[[str], str] = lambda text: text, lines: str = "", remove: str = "") -> Any:
    """Train of two pictures, val of one; `xml` changes a.xml, `lines` are added to the list of train."""

    def make(root: Path) -> None:
        train = {"a": xml(voc_xml("a.jpg", [CAT, DOG])), "b": voc_xml("b.jpg", [DOG])}
        write_voc(root, {"train": train, "val": {"c": voc_xml("c.jpg", [CAT, DOG])}})
        with (root / "ImageSets" / "Main" / "train.txt").open("a") as file:
            file.write(f"\n{lines}")
        paint(root)
        if remove:
            place = root / remove
            shutil.rmtree(place) if place.is_dir() else place.unlink()

    return make


def swap(old: str, new: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new, 1)

    return change


# --- the table --------------------------------------------------------------------------------------------

NAN, INFINITY = float("nan"), float("inf")
RESULTS = '[{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.9}]'

CASES: dict[str, Case] = {
    # image files
    "missing image": Case(
        without("train/train_a.jpg"), "missing-image", "image 1", "there is no file 'train/train_a.jpg'"
    ),
    "truncated JPEG": Case(image_file(cut), "broken-image", "train_a.jpg", "truncated"),
    "zero bytes": Case(
        image_file(lambda f: f.write_bytes(b"")), "unreadable-image", "train_a.jpg", "is empty (0 bytes)"
    ),
    "not an image": Case(
        image_file(lambda f: f.write_text("<html>404")), "unreadable-image", "train_a.jpg", "is not an image"
    ),
    "wrong size": Case(
        image_file(lambda f: Image.new("RGB", (90, 30)).save(f)),
        "image-size-differs",
        "train_a.jpg",
        "90 x 30 pixels, the annotation says 64 x 48",
    ),
    "huge picture": Case(
        bomb, "image-too-large", "train_a.jpg", "30000 x 30000 pixels, more than data.max_pixels"
    ),
    "no size stated": Case(
        coco(lambda c: c["images"][0].pop("width")), "missing-size", "image 1", "64 x 48 read from the file"
    ),
    "two entries, one file": Case(
        add("images", {"id": 9, "file_name": "train_a.jpg", "height": 48, "width": 64}),
        "same-file",
        "train_a.jpg",
        "images 1 and 9 are the same file",
    ),
    "same picture in train and val": Case(
        copied("train/train_a.jpg", "val/val_b.jpg"),
        "duplicates-across-splits",
        "train: train_a.jpg = val: val_b.jpg",
        "1 picture is in more than one of train, val",
    ),
    "same picture twice in train": Case(
        copied("train/train_a.jpg", "train/train_b.jpg"),
        "duplicates-within-split",
        "train: train_a.jpg = train: train_b.jpg",
        "in the same split",
    ),
    # COCO: entries
    "unknown image id": Case(
        annotation(image_id=99), "unknown-image", "annotation 2", "no image has the id 99"
    ),
    "duplicate image id": Case(
        add("images", {"id": 1, "file_name": "x.jpg", "height": 9, "width": 9}),
        "duplicate-image-id",
        "image 1",
        "'x.jpg' has the id of 'train_a.jpg'",
    ),
    "malformed image entry": Case(
        add("images", {"id": "7"}), "malformed-image", "images[2]", "integer id and a file_name"
    ),
    "path out of the data set": Case(
        add("images", {"id": 9, "file_name": "../../../etc/passwd", "height": 9, "width": 9}),
        "outside-root",
        "image 9",
        "'../../../etc/passwd' leads out",
    ),
    "duplicate annotation id": Case(
        annotation(id=1), "duplicate-annotation-id", "annotations[1]", "the id 1 is taken"
    ),
    "no annotation id": Case(annotation(id=None), "missing-annotation-id", "annotations[1]", "no integer id"),
    "unknown category": Case(
        annotation(category_id=77), "unknown-category", "annotation 2", "no category has the id 77"
    ),
    "id as text": Case(
        annotation(category_id="one"), "malformed-annotation", "annotation 2", "must be integers"
    ),
    "annotation is no object": Case(
        add("annotations", 5), "malformed-annotation", "annotations[3]", "not an object: dropped"
    ),
    "duplicate category id": Case(
        add("categories", {"id": 1, "name": "elk"}),
        "duplicate-category-id",
        "categories[2]",
        "id 1 is taken: only the first one counts",
    ),
    "malformed category": Case(
        add("categories", {"id": 3}), "malformed-category", "categories[2]", "an integer id and a name"
    ),
    "duplicate category name": Case(
        categories((1, "cat"), (2, "dog"), (3, "cat")),
        "duplicate-category-name",
        "'cat'",
        "The ids 1, 3 share the name",
    ),
    "names differ by case and blanks": Case(
        categories((1, "Fire Truck"), (2, "fire-truck ")),
        "class-names-alike",
        "'Fire Truck', 'fire-truck '",
        "differ only in case",
    ),
    "background class": Case(
        categories((1, "__background__"), (2, "dog")),
        "background-class",
        "'__background__'",
        "looks like a background class",
    ),
    "blank class name": Case(categories((1, " "), (2, "dog")), "blank-class-name", "' '", "a blank name"),
    "ids from zero": Case(categories((0, "cat"), (1, "dog")), "zero-based-ids", "(cat)", "start at 0"),
    "ids with gaps": Case(categories((1, "cat"), (90, "dog")), "sparse-ids", "ids 1 to 90", "have gaps"),
    # COCO: boxes
    "negative width": Case(
        box(30, 5, -10, 9), "negative-box", "annotation 1", "from (30, 5) to (20, 14) has a negative side"
    ),
    "zero area": Case(box(30, 5, 0, 9), "zero-size-box", "annotation 1", "has no area"),
    "NaN": Case(box(NAN, 5, 10, 9), "box-not-finite", "annotation 1", "box from (nan, 5) to (nan, 14)"),
    "infinity": Case(
        box(3, 5, INFINITY, 9), "box-not-finite", "annotation 1", "box from (3, 5) to (inf, 14)"
    ),
    "text in the box": Case(
        box(3, "five", 10, 9), "not-a-number", "annotation 1", "[3, 'five', 10, 9] must be made of numbers"
    ),
    "null in the box": Case(
        box(3, None, 10, 9), "not-a-number", "annotation 1", "bbox [3, None, 10, 9] must be made of numbers"
    ),
    "three numbers": Case(box(3, 5, 10), "malformed-annotation", "annotation 1", "a list of four numbers"),
    "no bbox": Case(
        coco(lambda c: c["annotations"][0].pop("bbox")), "malformed-annotation", "annotation 1", "no bbox"
    ),
    "box outside": Case(
        box(300, 5, 10, 9), "box-outside-image", "annotation 1", "is outside the image of 64 x 48"
    ),
    "box over the border": Case(
        box(60, 40, 10, 9), "box-over-border", "annotation 1", "reaches 6 pixels over the border"
    ),
    "doubled box": Case(
        coco(lambda c: c["annotations"].append({**c["annotations"][0], "id": 9})),
        "doubled-box",
        "train_a.jpg, annotation 9",
        "is annotated twice",
    ),
    "negative area": Case(annotation(area=-5), "bad-area", "annotation 2", "-5 is not an area"),
    # COCO: files
    "JSON syntax": Case(
        only_train('{\n "images": [],\n "annotations": [,]\n}'),
        "",
        INSTANCES,
        "not valid JSON (Expecting value: line 3",
        fatal=True,
    ),
    "cut JSON": Case(
        only_train('{"images": [{"id": 1'),
        "",
        INSTANCES,
        "not valid JSON (Expecting ',' delimiter",
        fatal=True,
    ),
    "wrong top level": Case(only_train('"hello"'), "", INSTANCES, "holds a str, not an object", fatal=True),
    "results instead of annotations": Case(
        only_train(RESULTS), "", INSTANCES, "holds detections (results with scores)", fatal=True
    ),
    "no list of annotations": Case(
        only_train('{"images": [], "categories": []}'), "", INSTANCES, "no list named annotations", fatal=True
    ),
    "no categories": Case(
        only_train('{"images": [], "annotations": [], "categories": []}'),
        "",
        INSTANCES,
        "no usable category",
        fatal=True,
    ),
    "empty split": Case(
        only_train('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}'),
        "",
        "split train",
        "(it lists none)",
        fatal=True,
    ),
    "not UTF-8": Case(
        only_train('{"images": "größe"}'.encode("latin-1")),
        "",
        INSTANCES,
        "not valid JSON ('utf-8' codec can't decode",
        fatal=True,
    ),
    "one split is broken": Case(
        lambda root: (coco()(root), (root / INSTANCES).write_text("{"))[0],
        "unusable-split",
        "train",
        "not valid JSON (Expecting property name",
        fatal=True,
    ),
    "no object at all": Case(
        coco(lambda c: c["annotations"].clear()), "no-objects", "train", "has no objects"
    ),
    "no train split": Case(without(INSTANCES), "no-train-split", "val", "no split to train on"),
    "no val split": Case(
        without("annotations/instances_val.json"), "no-val-split", "", "no val or test split"
    ),
    "more objects than queries": Case(
        crowd_of(120), "more-objects-than-queries", "1 image", "--model.num_queries 200"
    ),
    # YOLO
    "class out of range": Case(
        yolo("7 0.5 0.5 0.1 0.1"), "class-out-of-range", "labels/train/a.txt:1", "names has no class '7'"
    ),
    "no number": Case(
        yolo("cat 0.5 0.5 0.1 0.1"),
        "not-a-number",
        "labels/train/a.txt:1",
        "'cat 0.5 0.5 0.1 0.1' is not made of numbers",
    ),
    "four columns": Case(
        yolo("0 0.5 0.5 0.1"), "wrong-column-count", "labels/train/a.txt:1", "4 columns, not 5"
    ),
    "polygon": Case(
        yolo("0 0.1 0.1 0.5 0.1 0.5 0.6"), "polygon", "labels/train/a.txt:1", "taken as their bounding boxes"
    ),
    "pixels": Case(yolo("0 30 20 10 10"), "not-a-fraction", "labels/train/a.txt:1", "30 is not a fraction"),
    "no data.yaml": Case(
        lambda root: (yolo()(root), (root / "data.yaml").unlink())[0],
        "",
        "",
        "is not a data set: looked for",
        fatal=True,
    ),
    "no names": Case(
        yolo(yaml=lambda text: text.split("names:")[0]), "", "data.yaml", "has no names", fatal=True
    ),
    "YAML syntax": Case(
        yolo_file("data.yaml", "train: images/train\nnames: [a, b"),
        "",
        "data.yaml",
        "not valid YAML",
        fatal=True,
    ),
    "nc differs": Case(
        yolo(yaml=lambda text: text + "\nnc: 5"), "class-count", "data.yaml", "nc is 5, but there are 2 names"
    ),
    "train leads nowhere": Case(
        yolo(yaml=swap("train: images/train", "train: images/tarin")),
        "unusable-split",
        "train",
        "names images/tarin, but there is no",
        fatal=True,
    ),
    "train leads out": Case(
        yolo(yaml=swap("train: images/train", "train: ../..")),
        "unusable-split",
        "train",
        "leads out of the data set, to",
        fatal=True,
    ),
    "label without image": Case(
        yolo_file("labels/train/z.txt", "0 0.5 0.5 0.1 0.1"),
        "label-without-image",
        "labels/train/z.txt",
        "no image belongs to it",
    ),
    "labels are no text": Case(
        yolo_file("labels/train/a.txt", b"\xff\xfe\x00"),
        "unreadable-labels",
        "labels/train/a.txt",
        "its image is left out",
    ),
    "val is train": Case(
        yolo(yaml=swap("val: images/val", "val: images/train")),
        "duplicates-across-splits",
        "train: images/train/a.jpg = val: images/train/a.jpg",
        "2 pictures are in more than one",
    ),
    # Pascal VOC
    "broken XML": Case(
        voc(swap("</size>", "")), "unreadable-annotation", "Annotations/a.xml:12", "not well-formed XML"
    ),
    "entity bomb": Case(
        voc(lambda text: '<!DOCTYPE a [<!ENTITY b "c">]>' + text),
        "unreadable-annotation",
        "Annotations/a.xml:1",
        "declares a document type",
    ),
    "another root": Case(
        voc(lambda _: "<svg/>"), "unreadable-annotation", "Annotations/a.xml:1", "its root is <svg>"
    ),
    "empty XML": Case(voc(lambda _: ""), "unreadable-annotation", "Annotations/a.xml", "the file is empty"),
    "xmin > xmax": Case(
        voc(swap("<xmin>1.0<", "<xmin>20<")),
        "negative-box",
        "Annotations/a.xml:6",
        "to (11, 22) has a negative side",
    ),
    "object without name": Case(
        voc(swap("<name>cat</name>", "")), "missing-name", "Annotations/a.xml:4", "object without a name"
    ),
    "corner missing": Case(
        voc(swap("<ymax>22.0</ymax>", "")), "malformed-box", "Annotations/a.xml:6", "'cat' has no ymax"
    ),
    "corner is no number": Case(
        voc(swap("<ymax>22.0<", "<ymax>low<")),
        "not-a-number",
        "Annotations/a.xml:6",
        "'low' of 'cat' is not a number",
    ),
    "image listed twice": Case(
        voc(lines="a"), "duplicate-image", "ImageSets/Main/train.txt:3", "'a' is listed again"
    ),
    "listed but not annotated": Case(
        voc(lines="zzz"),
        "missing-annotation",
        "ImageSets/Main/train.txt:3",
        "there is no file 'Annotations/zzz.xml'",
    ),
    "annotated but no picture": Case(
        voc(remove="JPEGImages/a.jpg"),
        "missing-image",
        "Annotations/a.xml",
        "there is no image 'a' in JPEGImages",
    ),
    "no JPEGImages": Case(voc(remove="JPEGImages"), "", "JPEGImages", "cannot be listed", fatal=True),
}


def lost_pictures(root: Path) -> None:
    coco()(root)
    for split in ("train", "val"):
        shutil.rmtree(root / split)


CASES["images folder missing"] = Case(
    lost_pictures, "", "image 1", "has no image that can be used", fatal=True
)
CASES["empty file"] = Case(only_train(""), "", INSTANCES, "is empty: it should hold", fatal=True)


def found_in(report: DataReport) -> list[tuple[str, str, str]]:
    """(kind, where, message) of everything that is said; of remarks the sentence names the place."""
    problems = [*report.unusable]
    for split in report.splits:
        problems += [*split.problems, *split.notes]
    remarks = [(remark.kind, remark.message, remark.message) for remark in report.remarks]
    return [*((each.kind, each.where, each.message) for each in problems), *remarks]


def message_of(case: Case, root: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What is said of the case, the folder and its numbers left out."""
    root.mkdir()
    case.make(root)
    if case.fatal:
        assert main(["inspect", str(root)]) == 2
        captured = capsys.readouterr()
        said = " ".join(captured.err.split())
        assert "Traceback" not in said
        if case.kind:  # another split could be read: the reason stands in the report
            said = " ".join(captured.out.split())
        place, message = said, said
    else:
        found = found_in(inspect(root))
        matching = [entry for entry in found if entry[0] == case.kind and case.says in entry[2]]
        assert len(matching) == 1, found
        _, place, message = matching[0]
    assert case.where in place
    assert case.says in message
    return message.replace(str(root), "")


@pytest.mark.parametrize("name", CASES)
def test_each_kind_of_damage_is_named(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = message_of(CASES[name], tmp_path / "data", capsys)
    if not CASES[name].fatal:  # the report around the sentence says more
        assert [other for other, case in CASES.items() if case.says in message] == [name]


def test_the_messages_are_distinct() -> None:
    """Cases are told apart by words, not by the numbers in them."""
    words = re.compile(r"[\d.]+")
    said = sorted(words.sub("#", case.says) for case in CASES.values())
    assert len(said) == len(set(said)) >= 70


def test_a_file_that_may_not_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    coco()(tmp_path)
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.suffix == ".json":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)  # the superuser may read everything
    assert main(["inspect", str(tmp_path)]) == 2
    assert f"{INSTANCES} cannot be read: Permission denied" in capsys.readouterr().err


def exif(file: Path) -> None:
    write_image(file, (64, 48), orientation=6)


def mode(name: str) -> Callable[[Path], None]:
    def save(file: Path) -> None:
        with Image.open(file) as picture:
            other = picture.convert("L").convert(name) if name.startswith("I") else picture.convert(name)
        other.save(file, format="JPEG" if name == "CMYK" else "PNG")

    return save


def animation(file: Path) -> None:
    frames = [Image.new("L", (64, 48), shade) for shade in (0, 99)]
    frames[0].save(file, format="GIF", save_all=True, append_images=frames[1:])


def encoded(encoding: str) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        annotations = file.parents[1] / INSTANCES
        annotations.write_text(annotations.read_text(), encoding=encoding)

    return write


@pytest.mark.parametrize(
    "change",
    [exif, mode("CMYK"), mode("I;16"), mode("P"), animation, encoded("utf-8-sig"), encoded("utf-16")],
    ids=["EXIF", "CMYK", "16 bit", "palette", "animation", "byte order mark", "UTF-16"],
)
def test_odd_but_usable_data_is_no_problem(change: Callable[[Path], None], tmp_path: Path) -> None:
    image_file(change)(tmp_path)
    report = inspect(tmp_path)
    assert report.problem_count == 0
    assert report.splits[0].rotated == (change is exif)


def test_lines_of_a_file_in_utf_16(tmp_path: Path) -> None:
    box(3, 5, 0, 9)(tmp_path)
    encoded("utf-16")(tmp_path / "train" / "x.jpg")
    (problem,) = inspect(tmp_path).splits[0].problems
    text = (tmp_path / INSTANCES).read_text(encoding="utf-16")
    line = int(re.search(r"json:(\d+), annotation 1", problem.where)[1])  # type: ignore[index]
    assert '"id": 1,' in text.splitlines()[line]  # the entry's brace stands alone


def test_a_sound_data_set_has_no_problem(tmp_path: Path) -> None:
    for number, make in enumerate((coco(), yolo(), voc())):
        root = tmp_path / str(number)
        root.mkdir()
        make(root)
        report = inspect(root)
        assert report.problem_count == 0
        assert {remark.kind for remark in report.remarks} <= {"rare-classes"}
        assert report.duplicates == ()

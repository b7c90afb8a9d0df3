"""What people have: names written otherwise, values of other types, implausible boxes. Each is read if it has
one meaning, and reported for what it is if not."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deformable_detr.data.formats import assembly, list_splits, read_split
from deformable_detr.data.formats.losses import most_is_lost
from deformable_detr.errors import UserError
from tests.support.dataset_files import (
    coco_content,
    voc_xml,
    write_coco,
    write_image,
    write_json,
    write_voc,
    write_yolo,
)

CAT, DOG = ("cat", (4.0, 6.0, 24.0, 18.0)), ("dog", (32.0, 12.0, 56.0, 36.0))
ROW = "0 0.5 0.5 0.25 0.5"


def coco(root: Path, change: Callable[[dict[str, Any]], object], name: str = "a.jpg") -> Path:
    content = coco_content({name: [CAT, DOG], "b.jpg": [DOG]})
    write_coco(root, content)
    change(content)
    write_json(root / "annotations" / "instances_train.json", content)
    return root


def every_annotation(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: [row.update(values) for row in content["annotations"]]


def kinds(root: Path) -> list[str]:
    return [problem.kind for problem in read_split(root, "train").problems]


# --- names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "written",
    [
        "train\\a.jpg",
        "C:\\data\\train\\a.jpg",
        "/home/me/data/train/a.jpg",
        "../upload/a.jpg",
        "https://host/data/upload/1/a.jpg",
        "A.JPG",
        "./a.jpg",
        "s3://bucket/train/a.jpg?X-Amz-Expires=60&x=/b",
        "/data/local-files/?d=photos%2Fa.jpg",
        "train%2Fa.jpg",
        "x/" * 2000 + "a.jpg",
    ],
)
def test_coco_names_of_other_machines(written: str, tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["images"][0]["file_name"] = written
        content["images"][1]["file_name"] = written.replace("a.jpg", "b.jpg").replace("A.JPG", "B.JPG")

    coco(tmp_path, change)
    split = read_split(tmp_path, "train", strict=True)
    assert [image.path.name for image in split.images] == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_composed_differently(form: Any, tmp_path: Path) -> None:
    other: Any = "NFD" if form == "NFC" else "NFC"
    name = unicodedata.normalize(form, "Größe.jpg")
    content = coco_content({name: [CAT]})
    write_coco(tmp_path / "coco", content)
    content["images"][0]["file_name"] = unicodedata.normalize(other, name)
    write_json(tmp_path / "coco" / "annotations" / "instances_train.json", content)
    assert kinds(tmp_path / "coco") == ["respelt-name"]

    write_yolo(tmp_path / "yolo", {"train": {Path(name).stem: ROW}})
    labels = tmp_path / "yolo" / "labels" / "train"
    next(labels.iterdir()).rename(labels / f"{unicodedata.normalize(other, 'Größe')}.txt")
    assert len(read_split(tmp_path / "yolo", "train").images[0]) == 1


def test_names_that_could_be_several_files_are_missing(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["images"][0]["file_name"] = "day/a.jpg"
        content["images"][1]["file_name"] = "night/a.jpg"

    coco(tmp_path, change)
    with pytest.raises(UserError, match="no image that can be used"):
        read_split(tmp_path, "train")


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    stem = os.fsdecode(b"K\xe4fer")
    write_yolo(tmp_path, {"train": {stem: ROW}})
    (tmp_path / "list.txt").write_bytes(b"images/train/K\xe4fer.jpg\n")
    (tmp_path / "data.yaml").write_text("train: list.txt\nnames: [cat]")
    split = read_split(tmp_path, "train", strict=True)
    assert [len(image) for image in split.images] == [1]


# --- values -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["0", "false", "", None, False, 0.0])
def test_ways_to_write_that_nothing_is_a_crowd(value: Any, tmp_path: Path) -> None:
    coco(tmp_path, every_annotation(iscrowd=value))
    assert read_split(tmp_path, "train", strict=True).num_objects == 3


@pytest.mark.parametrize(("value", "count"), [(float("nan"), 1), ("maybe", 3), (2, 3), (-1, 3), ([], 3)])
def test_what_is_no_iscrowd_makes_no_crowds_and_is_reported(value: Any, count: int, tmp_path: Path) -> None:
    coco(tmp_path, every_annotation(iscrowd=value))
    assert read_split(tmp_path, "train").num_objects == 3
    assert kinds(tmp_path) == ["bad-iscrowd"] * count


def test_boxes_as_fractions_are_called_so(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        for row in content["annotations"]:
            x, y, w, h = row["bbox"]
            row["bbox"] = [x / 64, y / 48, w / 64, h / 48]

    split = read_split(coco(tmp_path, change), "train")
    assert {problem.kind for problem in split.problems} == {"box-in-fractions"}
    assert "fractions" in split.problems[0].message
    assert split.num_objects == 0
    assert "3 of 3 objects" in (most_is_lost(split) or "")


def test_a_small_box_among_others_is_no_fraction(tmp_path: Path) -> None:
    coco(tmp_path, lambda content: content["annotations"][0].update(bbox=[0, 0, 0.5, 0.5], area=0.25))
    assert kinds(tmp_path) == []


def test_a_warning_only_if_most_is_lost(tmp_path: Path) -> None:
    coco(tmp_path, lambda content: content["annotations"][0].update(category_id=99))
    assert most_is_lost(read_split(tmp_path, "train")) is None
    coco(tmp_path, lambda content: [row.update(category_id=99) for row in content["annotations"][:2]])
    lost = most_is_lost(read_split(tmp_path, "train")) or ""
    assert "2 of 3 objects" in lost
    assert "unknown-category" in lost


def test_too_many_objects_leave_their_picture_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly, "MOST_OBJECTS", 1)
    coco(tmp_path, lambda content: None)
    split = read_split(tmp_path, "train")
    assert [image.file_name for image in split.images] == ["b.jpg"]
    assert [problem.kind for problem in split.problems] == ["too-many-objects"]
    assert split.num_objects == 1


# --- YOLO -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (f"{ROW} 17", "extra-column"),
        (f"{ROW} 0.93", "extra-column"),
        (f"{ROW} 0.4 0.4 2 0.5 0.5 1", "pose"),
        (f"{ROW} 0.4 0.4 2 0.5 0.5 1 0.6 0.6 0", "pose"),
    ],
)
def test_what_tools_write_after_the_box(row: str, kind: str, tmp_path: Path) -> None:
    write_yolo(tmp_path, {"train": {"a": f"{row}\n{row}"}})
    split = read_split(tmp_path, "train", strict=True)
    assert split.images[0].boxes_xyxy.tolist() == [[24, 12, 40, 36]] * 2
    assert [problem.kind for problem in split.problems] == [kind]


def test_poses_without_visibilities_are_suspected(tmp_path: Path) -> None:
    row = f"{ROW} 0.45 0.4 0.5 0.5 0.55 0.6"
    write_yolo(tmp_path, {"train": {"a": f"{row}\n{row}"}})
    assert "pose-or-polygon" in kinds(tmp_path)
    assert "kpt_shape" in read_split(tmp_path, "train").problems[-1].message


def test_a_split_whose_folder_is_missing(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"train": {"a": ROW}})
    (tmp_path / "data.yaml").write_text("train: ../images/train\nval: ../valid/images\nnames: [cat]")
    with pytest.raises(UserError, match="there is no") as raised:
        read_split(tmp_path, "val")
    assert "leads out" not in str(raised.value)


def test_labels_without_class_names_say_what_is_missing(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.jpg")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text(ROW)
    with pytest.raises(UserError, match=r"labels/a\.txt.*classes\.txt"):
        read_split(tmp_path, "train")


def test_pictures_that_were_not_exported_are_missed(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text(ROW)
    (tmp_path / "classes.txt").write_text("cat")
    with pytest.raises(UserError, match=r"classes\.txt.*no pictures.*images") as raised:
        read_split(tmp_path, "train")
    assert "nothing names the classes" not in str(raised.value)


def test_two_names_of_one_split_are_joined(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"train": {"a": ROW}, "val": {"b": ROW}, "valid": {"c": ROW}})
    (tmp_path / "data.yaml").write_text(
        "train: images/train\nval: images/val\nvalid: images/valid\nnames: [cat]"
    )
    assert len(read_split(tmp_path, "val", strict=True)) == 2
    (tmp_path / "data.yaml").rename(tmp_path / "classes.txt")
    (tmp_path / "classes.txt").write_text("cat")
    assert len(read_split(tmp_path, "val", strict=True)) == 2


def test_aliases_in_yaml_cannot_fill_the_memory(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"train": {"a": ROW}})
    nested = "".join(f"l{level}: &l{level} [{', '.join([f'*l{level - 1}'] * 9)}]\n" for level in range(1, 9))
    (tmp_path / "data.yaml").write_text(f"l0: &l0 [x]\n{nested}nc: *l8\ntrain: images/train\nnames: [cat]")
    with pytest.raises(UserError, match=r"data\.yaml.*aliases"):
        read_split(tmp_path, "train", format="yolo")


@pytest.mark.parametrize("text", ["train: images/train", "names: [dog]", "names: {0: cat, 0: dog}"])
def test_a_key_that_is_stated_twice_is_refused(text: str, tmp_path: Path) -> None:
    write_yolo(tmp_path, {"train": {"a": ROW}})
    file = tmp_path / "data.yaml"
    file.write_text(f"{text}\ntrain: images/train\nnames: [cat]")
    with pytest.raises(UserError, match=r"data\.yaml.*stated twice"):
        read_split(tmp_path, "train", format="yolo")


@pytest.mark.parametrize("deep", ["x/" * 2000, "../" * 2000 + "x/"])
def test_a_very_deep_path_is_only_missing(deep: str, tmp_path: Path) -> None:
    write_yolo(tmp_path, {"train": {"a": ROW}})
    (tmp_path / "data.yaml").write_text(f"train: {deep}\nnames: [cat]")
    with pytest.raises(UserError, match="there is no"):
        read_split(tmp_path, "train")


def test_a_long_list_of_names_is_refused(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"train": {"a": ROW}})
    (tmp_path / "data.yaml").write_text("train: images/train\nnames:\n" + "- a class\n" * 300_000)
    with pytest.raises(UserError, match=r"data\.yaml has 3,.* bytes, too many"):
        read_split(tmp_path, "train", format="yolo")


# --- the rest ---------------------------------------------------------------------------------------------


def test_json_files_that_are_no_data_set_are_named(tmp_path: Path) -> None:
    write_json(tmp_path / "annotations" / "train.json", {"shapes": []})
    with pytest.raises(UserError, match=r"annotations/train\.json does not hold"):
        read_split(tmp_path, "train")
    write_json(tmp_path / "annotations" / "captions_train.json", coco_content({"a.jpg": [CAT]}))
    with pytest.raises(UserError, match=r"captions_train\.json is for another task"):
        read_split(tmp_path, "train")


def test_keypoints_are_read_if_there_is_nothing_else(tmp_path: Path) -> None:
    file = write_coco(tmp_path, coco_content({"a.jpg": [CAT]}))
    file.rename(file.with_name("person_keypoints_train.json"))  # as CVAT calls it
    assert read_split(tmp_path, "train", strict=True).num_objects == 1


def test_a_coco_file_may_begin_with_anything(tmp_path: Path) -> None:
    file = write_coco(tmp_path, content := coco_content({"a.jpg": [CAT]}))
    file.unlink()
    write_json(tmp_path / "annotations" / "train.json", {"version": "1.0", **content})
    assert read_split(tmp_path, "train", strict=True).num_objects == 1


def test_what_macos_leaves_on_other_disks(tmp_path: Path) -> None:
    names = ("a", "b", "c", "d")
    xml = {name: voc_xml(f"{name}.jpg", [CAT]) for name in names}
    write_voc(tmp_path / "voc", {"train": xml})
    write_yolo(tmp_path / "yolo", {"train": dict.fromkeys(names, ROW)})
    write_coco(tmp_path / "coco", coco_content({f"{name}.jpg": [CAT] for name in names}))
    for name in names:
        write_image(tmp_path / "flat" / f"{name}.jpg")
        (tmp_path / "flat" / f"{name}.xml").write_text(xml[name])
    for file in [file for file in tmp_path.rglob("*") if file.is_file()]:
        file.with_name(f"._{file.name}").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        ")
    for layout in ("voc", "yolo", "coco", "flat"):
        split = read_split(tmp_path / layout, "train", strict=True)
        assert (len(split), split.num_objects, split.problems) == (4, 4, ())
        assert len(list_splits(tmp_path / layout)) == 1


def test_linked_folders_within_a_data_set(tmp_path: Path) -> None:
    write_yolo(tmp_path / "store", {"train": {"b": ROW}})
    write_yolo(tmp_path / "set", {"train": {"a": ROW}})
    for part in ("images", "labels"):
        os.symlink(tmp_path / "store" / part / "train", tmp_path / "set" / part / "train" / "linked")
    os.symlink(tmp_path / "set" / "images", tmp_path / "set" / "images" / "train" / "back")
    split = read_split(tmp_path / "set", "train", strict=True)
    assert [(image.file_name, len(image)) for image in split.images] == [
        ("images/train/a.jpg", 1),
        ("images/train/linked/b.jpg", 1),
    ]


def test_openvino_and_other_xml_files_are_no_annotations(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")
    (tmp_path / "model.xml").write_text("<net></net>")
    with pytest.raises(UserError, match="is not a data set"):
        read_split(tmp_path, "train")
    (tmp_path / "a.xml").write_text(voc_xml("a.jpg", [CAT]))
    (tmp_path / "model.xml").unlink()
    assert read_split(tmp_path, "train", strict=True).num_objects == 1


def test_ids_as_pandas_writes_them(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        for row in (*content["images"], *content["annotations"]):
            row["id"] = float(row["id"])
        for row in content["annotations"]:
            row.update(image_id=str(row["image_id"]), category_id=f"{row['category_id']}.0")
            row["bbox"] = json.dumps(row["bbox"])

    assert read_split(coco(tmp_path, change), "train", strict=True).num_objects == 3

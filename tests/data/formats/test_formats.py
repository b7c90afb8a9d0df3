from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from deformable_detr.data.formats import (
    detect_format,
    formats_found,
    list_splits,
    read_split,
)
from deformable_detr.data.formats.assembly import check_boxes, image_ids
from deformable_detr.data.formats.lookup import path_inside
from deformable_detr.errors import UserError
from tests.support.dataset_files import coco_content, voc_xml, write_coco, write_voc, write_yolo
from tests.support.paths import data_set

CAT = ("cat", (1.0, 2.0, 11.0, 22.0))


@pytest.mark.parametrize(
    ("folder", "formats", "splits"),
    [
        ("tiny_coco", ("coco",), ("train2017", "val2017")),
        ("bccd_coco", ("coco",), ("train", "val", "test")),
        ("bccd_voc", ("voc",), ("train", "val", "test", "trainval")),
        ("aerial_cars", ("coco", "yolo"), ("train", "val")),
    ],
)
def test_detection_of_real_sets(folder: str, formats: tuple[str, ...], splits: tuple[str, ...]) -> None:
    assert formats_found(data_set(folder)) == formats
    assert detect_format(str(data_set(folder))) == formats[0]
    assert list_splits(data_set(folder)) == splits


def test_all_layouts_in_one_folder(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"train": {"a": None}})
    assert detect_format(tmp_path) == "yolo"
    write_voc(tmp_path, {"train": {"a": voc_xml("a.jpg", [CAT])}})
    assert detect_format(tmp_path) == "voc"
    write_coco(tmp_path, coco_content({"a.jpg": [CAT]}))
    assert formats_found(tmp_path) == ("coco", "voc", "yolo")
    for name in ("coco", "voc", "yolo"):
        assert read_split(tmp_path, "train", format=name).format == name


def test_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"annotations/\*\.json.*ImageSets/Main/\*\.txt.*data\.yaml"):
        detect_format(tmp_path)
    with pytest.raises(UserError, match=r"there is no data set at .*nowhere"):
        read_split(tmp_path / "nowhere", "train")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match="is not a data set"):
        read_split(tmp_path / "notes.txt", "train")
    assert formats_found(tmp_path) == ()


def test_a_format_that_is_not_there_or_not_known(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"train": {"a": None}})
    with pytest.raises(UserError, match=r"not a data set in voc layout: looked for Annotations"):
        read_split(tmp_path, "train", format="voc")
    with pytest.raises(UserError, match="unknown format pascal: choose auto, coco, voc, yolo"):
        read_split(tmp_path, "train", format="pascal")


def test_unknown_split_lists_those_there_are(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"train": {"a": None}, "val": {"b": None}})
    with pytest.raises(UserError, match="has no split test: there is train, val"):
        read_split(tmp_path, "test")


def test_split_names_may_leave_out_the_year(tmp_path: Path) -> None:
    content = coco_content({"a.jpg": [CAT]})
    write_coco(tmp_path, content, "train2017")
    write_coco(tmp_path, content, "val2014")
    write_coco(tmp_path, content, "val2017")
    assert read_split(tmp_path, "train").name == "train2017"
    assert read_split(tmp_path, "val2014").name == "val2014"
    with pytest.raises(UserError, match=r"split val of .* could be val2014 or val2017"):
        read_split(tmp_path, "val")


def test_relative_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_coco(tmp_path, coco_content({"a.jpg": [CAT]}))
    monkeypatch.chdir(tmp_path)
    assert len(read_split(".", "train", strict=True)) == 1
    assert len(read_split(os.path.relpath(tmp_path), "train", strict=True)) == 1


def test_strict_reports_the_count_and_the_first_few(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"train": {"a": "9 0 0 1 1\n" * 5}})
    with pytest.raises(UserError, match=r"5 problems \(.*a\.txt:1.*a\.txt:2.*a\.txt:3.*; and 2 more\)"):
        read_split(tmp_path, "train", strict=True)


def test_one_box_is_broken_in_one_way_whatever_the_layout(tmp_path: Path) -> None:
    bad = ("cat", (60.0, 10.0, 70.0, 20.0))
    write_coco(tmp_path / "c", coco_content({"a.jpg": [bad]}))
    write_voc(tmp_path / "v", {"train": {"a": voc_xml("a.jpg", [bad])}})
    row = f"0 {65 / 64} {15 / 48} {10 / 64} {10 / 48}"
    write_yolo(tmp_path / "y", {"train": {"a": row}}, names=["cat"])
    for folder in "cvy":
        split = read_split(tmp_path / folder, "train")
        assert [problem.kind for problem in split.problems] == ["box-over-border"]
        np.testing.assert_allclose(split.images[0].boxes_xyxy, [[60, 10, 64, 20]])


def test_check_boxes_of_nothing() -> None:
    boxes, keep, findings = check_boxes(np.zeros((0, 4)), np.zeros((0, 2)))
    assert (boxes.shape, keep.shape, findings) == ((0, 4), (0,), [])


def test_path_inside(tmp_path: Path) -> None:
    root = str(tmp_path)
    assert path_inside(root, "a", "b.jpg") == str(tmp_path / "a" / "b.jpg")
    assert path_inside(root, "a", "../b.jpg") == str(tmp_path / "b.jpg")
    assert path_inside(root, str(tmp_path / "a")) == str(tmp_path / "a")
    assert path_inside(root, "") == root
    for way_out in ("..", "../x", "a/../../x", "/etc/passwd", f"{tmp_path}x/y", "\0"):
        assert path_inside(root, way_out) is None
    assert path_inside("/", "etc") == "/etc"


def test_image_ids() -> None:
    assert image_ids(["b/010.jpg", "a/9.jpg"]) == {"b/010.jpg": 10, "a/9.jpg": 9}
    assert image_ids(["b.jpg", "a.jpg", "b.jpg"]) == {"a.jpg": 1, "b.jpg": 2}
    assert image_ids(["1.jpg", "01.png"]) == {"01.png": 1, "1.jpg": 2}
    assert image_ids(["9" * 30]) == {"9" * 30: 1}
    assert image_ids([]) == {}

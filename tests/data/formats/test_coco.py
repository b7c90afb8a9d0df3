from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deformable_detr.data.formats import coco_json, list_splits, read_split
from deformable_detr.errors import UserError
from tests.support.dataset_files import coco_content, write_coco, write_image, write_json
from tests.support.paths import data_set

Content = dict[str, Any]


def two_images() -> Content:
    return coco_content(
        {"a.jpg": [("cat", (1.0, 2.0, 11.0, 22.0)), ("dog", (5.0, 5.0, 50.0, 40.0))], "b.jpg": []}
    )


@pytest.mark.parametrize(
    ("folder", "split", "images", "boxes", "crowds", "empty"),
    [
        ("tiny_coco", "train2017", 50, 470, 5, 1),
        ("tiny_coco", "val2017", 50, 382, 5, 2),
        ("bccd_coco", "train", 205, 2804, 0, 0),
        ("bccd_coco", "val", 87, 1137, 0, 0),
        ("bccd_coco", "test", 72, 945, 0, 0),
        ("aerial_cars", "train", 26, 622, 0, 0),
        ("aerial_cars", "val", 10, 252, 0, 0),
    ],
)
def test_real_sets(folder: str, split: str, images: int, boxes: int, crowds: int, empty: int) -> None:
    result = read_split(data_set(folder), split, strict=True)
    assert result.format == "coco"
    assert result.problems == ()
    assert len(result) == images
    assert sum(map(len, result.images)) == boxes
    assert sum(int(image.crowd.sum()) for image in result.images) == crowds
    assert sum(len(image) == 0 for image in result.images) == empty
    assert [image.image_id for image in result.images] == sorted(image.image_id for image in result.images)
    assert all(image.path.is_file() for image in result.images)


def test_real_coco_agrees_with_its_json_object_by_object() -> None:
    root = data_set("tiny_coco")
    content = json.loads((root / "annotations" / "instances_val2017.json").read_text())
    split = read_split(root, "val2017")
    assert len(split.classes) == 80
    assert split.classes.category_ids[0] == 1
    assert split.classes.category_ids[-1] == 90
    by_id = {row["id"]: row for row in content["annotations"]}
    seen = 0
    for image in split.images:
        for row, annotation_id in enumerate(image.annotation_ids.tolist()):
            stated = by_id[annotation_id]
            x, y, w, h = stated["bbox"]
            assert stated["image_id"] == image.image_id
            assert split.classes.category_ids[image.labels[row]] == stated["category_id"]
            np.testing.assert_allclose(image.boxes_xyxy[row], (x, y, x + w, y + h), atol=0.02)
            assert image.area[row] == stated["area"]
            assert image.crowd[row] == bool(stated["iscrowd"])
            seen += 1
    assert seen == len(by_id)


def test_category_ids_may_start_at_zero() -> None:
    split = read_split(data_set("aerial_cars"), "train")
    assert split.classes.category_ids == (0, 1, 2, 3, 4)
    assert split.classes.names == ("car", "truck", "bus", "minibus", "cyclist")


def test_dtypes_shapes_and_class_indices(tmp_path: Path) -> None:
    write_coco(tmp_path, two_images())
    first, second = read_split(tmp_path, "train").images
    assert first.size == (48, 64)
    assert first.path == tmp_path / "train" / "a.jpg"
    np.testing.assert_array_equal(first.boxes_xyxy, [[1, 2, 11, 22], [5, 5, 50, 40]])
    np.testing.assert_array_equal(first.labels, [0, 1])
    assert (first.boxes_xyxy.dtype, first.labels.dtype) == (np.float64, np.int64)
    assert (first.crowd.dtype, first.difficult.dtype, first.area.dtype) == (bool, bool, np.float64)
    assert second.boxes_xyxy.shape == (0, 4)
    assert len(second) == 0


def test_labels_follow_the_order_of_category_ids_not_of_the_file(tmp_path: Path) -> None:
    content = two_images()
    content["categories"].reverse()
    write_coco(tmp_path, content)
    split = read_split(tmp_path, "train")
    assert split.classes.names == ("cat", "dog")
    assert split.images[0].labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    "segmentation",
    [
        {"counts": [10, 20, 30], "size": [48, 64]},
        {"counts": "abc;def", "size": [48, 64]},
        [[1, 2, 3, 4, 5, 6]],
        [],
        "nonsense",
        None,
    ],
)
def test_crowds_with_any_segmentation(tmp_path: Path, segmentation: Any) -> None:
    content = two_images()
    content["annotations"][0] |= {"iscrowd": 1, "segmentation": segmentation}
    write_coco(tmp_path, content)
    split = read_split(tmp_path, "train", strict=True)
    assert split.images[0].crowd.tolist() == [True, False]


def test_area_is_the_stated_one_and_else_width_times_height(tmp_path: Path) -> None:
    content = two_images()
    content["annotations"][0]["area"] = 12.5
    del content["annotations"][1]["area"]
    write_coco(tmp_path, content)
    assert read_split(tmp_path, "train", strict=True).images[0].area.tolist() == [12.5, 45 * 35]


@pytest.mark.parametrize(
    ("split", "folder"),
    [
        ("train", "train"),
        ("train", "images/train"),
        ("train", "train/images"),
        ("train", "images"),
        ("train", "."),
        ("train2017", "train2017"),
        ("train2017", "images/train2017"),
        ("train2017", "train"),
    ],
)
def test_image_folders(tmp_path: Path, split: str, folder: str) -> None:
    content = two_images()
    write_json(tmp_path / "annotations" / f"instances_{split}.json", content)
    for row in content["images"]:
        write_image(tmp_path / folder / row["file_name"])
    result = read_split(tmp_path, "train", strict=True)
    assert result.images[0].path == tmp_path / folder / "a.jpg"


def test_file_names_in_subfolders(tmp_path: Path) -> None:
    content = two_images()
    content["images"][0]["file_name"] = "day/1/a.jpg"
    content["images"][1]["file_name"] = "night/b.jpg"
    write_coco(tmp_path, content)
    assert len(read_split(tmp_path, "train", strict=True)) == 2


def test_the_folder_is_found_though_the_first_images_are_missing(tmp_path: Path) -> None:
    content = coco_content({f"{index:03}.jpg": [] for index in range(60)})
    write_coco(tmp_path, content)
    for index in range(30):
        (tmp_path / "train" / f"{index:03}.jpg").unlink()
    split = read_split(tmp_path, "train")
    assert len(split) == 30
    assert {problem.kind for problem in split.problems} == {"missing-image"}


def test_roboflow_export(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        content = two_images()
        write_json(tmp_path / split / "_annotations.coco.json", content)
        for row in content["images"]:
            write_image(tmp_path / split / row["file_name"])
    assert list_splits(tmp_path) == ("train", "valid")
    assert read_split(tmp_path, "val").name == "valid"
    alone = tmp_path / "valid" / "_annotations.coco.json"
    assert list_splits(alone) == ("valid",)
    assert len(read_split(alone, "val", strict=True)) == 2


def test_other_json_files_are_no_splits(tmp_path: Path) -> None:
    file = write_coco(tmp_path, two_images())
    for name in ("captions_train", "person_keypoints_train", "repairs"):
        shutil.copy(file, file.with_name(f"{name}.json"))
    assert list_splits(tmp_path) == ("train",)


@pytest.mark.parametrize("home", ["train", "."])
@pytest.mark.parametrize(
    ("pictures", "data"),
    [("images", ""), (".", "x" * 20_000)],  # labelme's imageData makes its files larger than all of COCO's
    ids=["elsewhere", "next to their pictures"],
)
def test_an_annotation_file_among_a_file_for_each_picture(
    home: str, pictures: str, data: str, tmp_path: Path
) -> None:
    content = coco_content({f"{number:03}.jpg": [] for number in range(60)})
    content["categories"] = two_images()["categories"]
    for row in content["images"]:
        write_image(tmp_path / home / pictures / row["file_name"])
        file = (tmp_path / home / row["file_name"]).with_suffix(".json")
        write_json(file, {"version": "5.4", "shapes": [], "imageData": data})
    write_json(tmp_path / home / "train.json", content)
    assert list_splits(tmp_path) == ("train",)
    assert len(read_split(tmp_path, "train", strict=True)) == 60


def test_json_without_the_usual_name(tmp_path: Path) -> None:
    file = write_coco(tmp_path, two_images())
    file.rename(file.with_name("train.json"))
    write_json(file.with_name("readme.json"), {})
    assert list_splits(tmp_path) == ("train",)
    assert len(read_split(tmp_path, "train", strict=True)) == 2


def test_a_json_file_as_the_data_set(tmp_path: Path) -> None:
    file = write_coco(tmp_path, two_images())
    write_coco(tmp_path, two_images(), "val")
    assert list_splits(file) == ("train",)
    assert len(read_split(file, "train")) == 2
    with pytest.raises(UserError, match="no split val: there is train"):
        read_split(file, "val")


# --- broken -----------------------------------------------------------------------------------------------


def change(index: int, **values: Any) -> Callable[[Content], None]:
    return lambda content: content["annotations"][index].update(values)


def append(key: str, row: Any) -> Callable[[Content], None]:
    return lambda content: content[key].append(row)


BROKEN: dict[str, tuple[Callable[[Content], None], str, str, int]] = {
    # name: how, kind of the problem, where, boxes left of 2
    "zero width": (change(0, bbox=[5, 5, 0, 9]), "zero-size-box", "annotation 1", 1),
    "zero height": (change(0, bbox=[5, 5, 9, 0.0]), "zero-size-box", "annotation 1", 1),
    "negative width": (change(1, bbox=[5, 5, -3, 9]), "negative-box", "annotation 2", 1),
    "outside": (change(0, bbox=[100, 5, 10, 9]), "box-outside-image", "annotation 1", 1),
    "outside to the left": (change(0, bbox=[-20, 5, 20, 9]), "box-outside-image", "annotation 1", 1),
    "over the border": (change(0, bbox=[60, 40, 10, 9]), "box-over-border", "annotation 1", 2),
    "NaN": (change(0, bbox=[float("nan"), 5, 10, 9]), "box-not-finite", "annotation 1", 1),
    "infinity": (change(0, bbox=[5, 5, float("inf"), 9]), "box-not-finite", "annotation 1", 1),
    "overflow": (change(0, bbox=[1e308, 5, 1e308, 9]), "box-not-finite", "annotation 1", 1),
    "huge integer": (change(0, bbox=[10**400, 5, 5, 9]), "zero-size-box", "annotation 1", 1),
    "text in the box": (change(0, bbox=[5, "five", 5, 9]), "not-a-number", "annotation 1", 1),
    "null in the box": (change(0, bbox=[5, None, 5, 9]), "not-a-number", "annotation 1", 1),
    "three numbers": (change(0, bbox=[5, 5, 9]), "malformed-annotation", "annotation 1", 1),
    "no box": (change(0, bbox=None), "malformed-annotation", "annotation 1", 1),
    "unknown category": (change(0, category_id=1), "unknown-category", "annotation 1", 1),
    "unknown image": (change(0, image_id=99), "unknown-image", "annotation 1", 1),
    "image id as text": (change(0, image_id="one"), "malformed-annotation", "annotation 1", 1),
    "image id beyond 64 bits": (change(0, image_id=2**70), "malformed-annotation", "annotation 1", 1),
    "duplicate annotation id": (change(1, id=1), "duplicate-annotation-id", "annotations[1]", 2),
    "no annotation id": (change(1, id=None), "missing-annotation-id", "annotations[1]", 2),
    "negative area": (change(0, area=-4), "bad-area", "annotation 1", 2),
    "area as text": (change(0, area="large"), "bad-area", "annotation 1", 2),
    "annotation is no object": (append("annotations", 5), "malformed-annotation", "annotations[2]", 2),
    "image is no object": (append("images", "c.jpg"), "malformed-image", "images[2]", 2),
    "image without name": (append("images", {"id": 5}), "malformed-image", "images[2]", 2),
    "duplicate image id": (
        append("images", {"id": 1, "file_name": "c.jpg", "height": 9, "width": 9}),
        "duplicate-image-id",
        "image 1",
        2,
    ),
    "missing image": (
        append("images", {"id": 3, "file_name": "c.jpg", "height": 9, "width": 9}),
        "missing-image",
        "image 3",
        2,
    ),
    "image outside": (
        append("images", {"id": 3, "file_name": "../../../etc/passwd", "height": 9, "width": 9}),
        "outside-root",
        "image 3",
        2,
    ),
    "absolute image": (
        append("images", {"id": 3, "file_name": "/etc/passwd", "height": 9, "width": 9}),
        "outside-root",
        "image 3",
        2,
    ),
    "image name with a zero byte": (
        append("images", {"id": 3, "file_name": "a\0/b.jpg", "height": 9, "width": 9}),
        "outside-root",
        "image 3",
        2,
    ),
    "image name that is no text for a file system": (
        append("images", {"id": 3, "file_name": "\ud800/\ud800.jpg", "height": 9, "width": 9}),
        "missing-image",
        "image 3",
        2,
    ),
    "image of size 0": (lambda content: content["images"][0].update(width=0), "missing-size", "image 1", 2),
    "duplicate category": (
        append("categories", {"id": 7, "name": "bird"}),
        "duplicate-category-id",
        "categories[2]",
        2,
    ),
    "category without name": (append("categories", {"id": 8}), "malformed-category", "categories[2]", 2),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_entries_are_dropped_and_named(tmp_path: Path, case: str) -> None:
    breaking, kind, where, boxes_left = BROKEN[case]
    content = two_images()
    write_coco(tmp_path, content)
    breaking(content)
    write_json(tmp_path / "annotations" / "instances_train.json", content)
    split = read_split(tmp_path, "train")
    (problem,) = split.problems
    assert problem.kind == kind
    assert problem.where == f"annotations/instances_train.json, {where}"
    assert [image.file_name for image in split.images] == ["a.jpg", "b.jpg"]
    (image, _) = split.images
    assert len(image) == boxes_left
    assert image.size == (48, 64)
    assert np.isfinite(image.boxes_xyxy).all()
    assert len(set(image.annotation_ids.tolist())) == boxes_left
    with pytest.raises(UserError, match="has 1 problem"):
        read_split(tmp_path, "train", strict=True)


def test_lines_of_entries_in_any_layout(tmp_path: Path) -> None:
    """Lines are those of the entries' opening braces, however the file is written; none on a single line."""
    content = two_images() | {"info": {"a": [1, {"b": "]},{"}]}, "licenses": []}
    write_coco(tmp_path, content)
    content["annotations"][1]["bbox"] = [5, 5, 0, 9]
    file = tmp_path / "annotations" / "instances_train.json"

    def line() -> int | None:
        (problem,) = read_split(tmp_path, "train").problems
        assert problem.where.endswith(", annotation 2")
        found = re.search(r"json:(\d+),", problem.where)
        return None if found is None else int(found[1])

    file.write_text(json.dumps(content))
    assert line() is None
    for indent in (0, 1, 4):
        file.write_text(json.dumps(content, indent=indent))
        lines = file.read_text().splitlines()
        number = line()
        assert number is not None
        assert [lines[number - 1].strip(), lines[number].strip()] == ["{", '"id": 2,']
    text = json.dumps(content).replace('{"id": 2, "image_id"', '\r\n\t{"id": 2, "image_id"')
    file.write_bytes(text.encode())
    assert line() == 2


def test_clipping_and_its_tolerance(tmp_path: Path) -> None:
    content = two_images()
    content["annotations"][0]["bbox"] = [60.01, 40.0, 4.0, 8.02]  # as two decimals round
    content["annotations"][1]["bbox"] = [-0.5, 3.0, 10.5, 60.0]
    write_coco(tmp_path, content)
    split = read_split(tmp_path, "train")
    np.testing.assert_array_equal(split.images[0].boxes_xyxy, [[60.01, 40, 64, 48], [0, 3, 10, 48]])
    (problem,) = split.problems
    assert problem.kind == "box-over-border"
    assert "15 pixels" in problem.message


def test_objects_of_a_missing_image_cause_no_problems_of_their_own(tmp_path: Path) -> None:
    write_coco(tmp_path, two_images())
    (tmp_path / "train" / "a.jpg").unlink()
    split = read_split(tmp_path, "train")
    assert [problem.kind for problem in split.problems] == ["missing-image"]
    assert [image.file_name for image in split.images] == ["b.jpg"]


def test_nothing_left(tmp_path: Path) -> None:
    write_coco(tmp_path, two_images())
    shutil.rmtree(tmp_path / "train")
    with pytest.raises(UserError, match=r"no image that can be used \(the first of 2 problems is .*a\.jpg"):
        read_split(tmp_path, "train")


def test_links_inside_the_data_set_are_followed(tmp_path: Path) -> None:
    write_coco(tmp_path / "set", two_images())
    (tmp_path / "set" / "train").rename(tmp_path / "disk")
    (tmp_path / "set" / "train").symlink_to(tmp_path / "disk")
    assert len(read_split(tmp_path / "set", "train", strict=True)) == 2


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is empty"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"a": ' + "9" * 5000 + "}", "not valid JSON"),
        ("\udcff", "not valid JSON"),
        ("[]", "holds a list"),
        ('{"images": [], "annotations": {}}', "no list named annotations"),
        ('{"images": [], "annotations": [], "categories": []}', "no usable category"),
    ],
)
def test_unusable_files(tmp_path: Path, text: str, complaint: str) -> None:
    file = write_coco(tmp_path, two_images())
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=complaint) as raised:
        read_split(tmp_path, "train")
    assert str(file) in str(raised.value) or "instances_train.json" in str(raised.value)


def test_size_from_the_file_needs_a_readable_file(tmp_path: Path) -> None:
    content = two_images()
    write_coco(tmp_path, content)
    del content["images"][0]["width"]
    write_json(tmp_path / "annotations" / "instances_train.json", content)
    (tmp_path / "train" / "a.jpg").write_bytes(b"no picture")
    split = read_split(tmp_path, "train")
    assert [problem.kind for problem in split.problems] == ["unreadable-image"]
    assert len(split) == 1


box_sides = st.floats(1.25, 20, allow_nan=False)
boxes = st.builds(
    lambda x, y, w, h: (x, y, x + w, y + h), st.floats(0, 40), st.floats(0, 25), box_sides, box_sides
)
objects = st.lists(st.tuples(st.sampled_from(["cat", "dog", "a <b> & 'c'"]), boxes), max_size=4)


@given(st.lists(objects, min_size=1, max_size=3))
@settings(max_examples=25)
def test_round_trip(images: list[list[tuple[str, tuple[float, float, float, float]]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        named = {f"{index}.png": row for index, row in enumerate(images)}
        write_coco(Path(folder), coco_content(named))
        split = read_split(folder, "train", strict=True)
        for image in split.images:
            expected = named[image.file_name]
            assert [split.classes.name(label) for label in image.labels] == [name for name, _ in expected]
            np.testing.assert_allclose(
                image.boxes_xyxy, np.array([box for _, box in expected]).reshape(-1, 4), atol=1e-9
            )


def test_a_document_that_is_far_too_large_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_coco(tmp_path, two_images())

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("it was read")

    monkeypatch.setattr(coco_json, "MAX_BYTES", 100)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UserError, match=r"instances_train\.json has [\d,]+ bytes.*at most 100"):
        read_split(tmp_path, "train")


scraps = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["id", "bbox"]), inner),
    max_leaves=6,
)
keys = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "file_name", "height", "width", "name")
rows = st.dictionaries(st.sampled_from(keys), scraps) | scraps


@given(st.lists(rows, max_size=3), st.lists(rows, max_size=3), st.lists(rows, max_size=3))
@settings(max_examples=40)
def test_no_json_gets_past_the_reader(
    images: list[Any], annotations: list[Any], categories: list[Any]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        content = two_images()
        write_coco(Path(folder), content)
        content["images"] += images
        content["annotations"] += annotations
        content["categories"] += categories
        write_json(Path(folder) / "annotations" / "instances_train.json", content)
        split = read_split(folder, "train")
        assert len(split) >= 2
        for image in split.images:
            assert np.isfinite(image.boxes_xyxy).all()
            assert np.isfinite(image.area).all()

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deformable_detr.data.formats import list_splits, read_split
from deformable_detr.errors import UserError
from tests.support.dataset_files import write_image, write_yolo
from tests.support.paths import data_set

TWO_ROWS = "0 0.5 0.5 0.25 0.5\n1 0.25 0.25 0.125 0.25\n"


def a_set(root: Path) -> Path:
    return write_yolo(root, {"train": {"a": TWO_ROWS, "b": None}})


def rewrite_yaml(root: Path, text: str) -> Path:
    (root / "data.yaml").write_text(text)
    return root


def test_aerial_cars_as_yolo() -> None:
    root = data_set("aerial_cars")
    train, val = read_split(root, "train", format="yolo"), read_split(root, "val", format="yolo")
    assert (len(train), sum(map(len, train.images))) == (26, 622)
    assert (len(val), sum(map(len, val.images))) == (10, 252)
    assert [(problem.kind, problem.where) for problem in train.problems] == [
        ("box-over-border", "labels/train/MOS74.txt:19"),
        ("box-over-border", "labels/train/MOS79.txt:19"),
        ("box-over-border", "labels/train/MOS84.txt:20"),
    ]
    assert val.problems == ()
    assert train.classes.names == ("car", "truck", "bus", "minibus", "cyclist")


@pytest.mark.parametrize("split", ["train", "val"])
def test_aerial_cars_equals_its_coco_edition(split: str) -> None:
    root = data_set("aerial_cars")
    yolo, coco = read_split(root, split, format="yolo"), read_split(root, split, format="coco")
    assert yolo.classes == coco.classes
    by_name = {image.path: image for image in coco.images}
    for image in yolo.images:
        other = by_name[image.path]
        assert image.size == other.size
        np.testing.assert_array_equal(image.labels, other.labels)
        np.testing.assert_allclose(image.boxes_xyxy, other.boxes_xyxy, atol=0.01)


def test_boxes_in_pixels_and_images_without_labels(tmp_path: Path) -> None:
    a_set(tmp_path)
    write_image(tmp_path / "images" / "train" / "c.jpg")
    (tmp_path / "labels" / "train" / "c.txt").write_text("\n  \n")
    first, second, third = read_split(tmp_path, "train", strict=True).images
    assert first.size == (48, 64)
    assert first.file_name == "images/train/a.jpg"
    np.testing.assert_array_equal(first.boxes_xyxy, [[24, 12, 40, 36], [12, 6, 20, 18]])
    np.testing.assert_array_equal(first.labels, [0, 1])
    assert first.area.tolist() == [16 * 24, 8 * 12]
    assert (len(second), len(third)) == (0, 0)
    assert second.boxes_xyxy.shape == (0, 4)


def test_the_size_is_the_upright_one(tmp_path: Path) -> None:
    a_set(tmp_path)
    write_image(tmp_path / "images" / "train" / "a.jpg", (48, 64), orientation=6)
    image = read_split(tmp_path, "train", strict=True).images[0]
    assert image.size == (64, 48)
    np.testing.assert_array_equal(image.boxes_xyxy[0], [18, 16, 30, 48])


def test_polygons_become_their_bounding_boxes(tmp_path: Path) -> None:
    a_set(tmp_path)
    (tmp_path / "labels" / "train" / "a.txt").write_text(
        "0 0.5 0.5 0.25 0.5\n1 0.25 0.5 0.75 0.25 0.5 1.0\n1 0 0 0.5 0 0.5 0.5 0 0.5\n"
    )
    split = read_split(tmp_path, "train", strict=True)  # a remark, not a fault
    np.testing.assert_array_equal(
        split.images[0].boxes_xyxy, [[24, 12, 40, 36], [16, 12, 48, 48], [0, 0, 32, 24]]
    )
    (problem,) = split.problems
    assert (problem.kind, problem.where) == ("polygon", "labels/train/a.txt:2")
    assert "2 polygons" in problem.message


def test_keypoints_after_the_box_are_passed_over(tmp_path: Path) -> None:
    a_set(tmp_path)
    rewrite_yaml(tmp_path, "train: images/train\nkpt_shape: [2, 3]\nnames: [cat, dog]")
    (tmp_path / "labels" / "train" / "a.txt").write_text("0 0.5 0.5 0.25 0.5 0.1 0.1 2 0.2 0.2 2\n")
    np.testing.assert_array_equal(
        read_split(tmp_path, "train", strict=True).images[0].boxes_xyxy, [[24, 12, 40, 36]]
    )


@pytest.mark.parametrize(
    ("yaml", "names", "ids"),
    [
        ("names: [cat, dog]", ("cat", "dog"), (0, 1)),
        ("names: {1: dog, 0: cat}", ("cat", "dog"), (0, 1)),
        ("names:\n  - 'no'\n  - no", ("no", "no"), (0, 1)),
        ("names: [1, on]", ("1", "on"), (0, 1)),
        ("names: {0: cat, 5: dog, 1: elk}", ("cat", "elk", "dog"), (0, 1, 5)),
        ("names: [!!python/object/apply:os.system [true], !x dog]", None, None),
        ("names: [!!python/name:os.system x, !x dog]", ("x", "dog"), (0, 1)),
    ],
)
def test_names(tmp_path: Path, yaml: str, names: tuple[str, ...] | None, ids: tuple[int, ...] | None) -> None:
    a_set(tmp_path)
    rewrite_yaml(tmp_path, f"train: images/train\n{yaml}")
    if names is None:
        with pytest.raises(UserError, match="must be a string"):
            read_split(tmp_path, "train")
    else:
        classes = read_split(tmp_path, "train").classes
        assert (classes.names, classes.category_ids) == (names, ids)


def test_label_indices_follow_numbered_names(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"train": {"a": "7 0.5 0.5 0.25 0.5\n"}})
    rewrite_yaml(tmp_path, "train: images/train\nnames: {2: cat, 7: dog}")
    assert read_split(tmp_path, "train", strict=True).images[0].labels.tolist() == [1]


@pytest.mark.parametrize(
    "yaml",
    [
        "path: .\ntrain: images/train",
        "path: images\ntrain: train",
        "train: [images/train]",
        "train:\n  - images/train\n  - images/more",
        "train: ./images/train/",
        "train: ../images/train",  # Roboflow
        "train: images",
        "train: list.txt",
        "train: lists/list.txt",
        "path: {root}\ntrain: images/train",
        "train: {root}/images/train",
        "val:\ntest: ~\ntrain: images/train",
    ],
)
def test_ways_to_name_a_split(tmp_path: Path, yaml: str) -> None:
    a_set(tmp_path)
    (tmp_path / "images" / "more").mkdir()
    (tmp_path / "lists").mkdir()
    (tmp_path / "list.txt").write_text("./images/train/a.jpg\n\nimages/train/b.jpg\n")
    (tmp_path / "lists" / "list.txt").write_text(f"images/train/a.jpg\n{tmp_path}/images/train/b.jpg\n")
    rewrite_yaml(tmp_path, yaml.format(root=tmp_path) + "\nnames: [cat, dog]")
    assert list_splits(tmp_path) == ("train",)
    split = read_split(tmp_path, "train", strict=True)
    assert [image.file_name for image in split.images] == ["images/train/a.jpg", "images/train/b.jpg"]
    assert [len(image) for image in split.images] == [2, 0]


def test_labels_beside_images_and_nested_folders(tmp_path: Path) -> None:
    write_image(tmp_path / "train" / "deep" / "er" / "a.jpg")
    (tmp_path / "train" / "deep" / "er" / "a.txt").write_text(TWO_ROWS)
    (tmp_path / "train" / "classes.txt").write_text("cat\ndog")
    rewrite_yaml(tmp_path, "train: train\nnames: [cat, dog]")
    assert len(read_split(tmp_path, "train", strict=True).images[0]) == 2


def test_everything_in_one_folder(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_text(TWO_ROWS)
    (tmp_path / "readme.txt").write_text("hello")
    rewrite_yaml(tmp_path, "train: .\nnames: [cat, dog]")
    assert len(read_split(tmp_path, "train", strict=True).images[0]) == 2


def test_labels_replace_the_last_folder_called_images(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "train" / "images" / "a.jpg")
    (tmp_path / "images" / "train" / "labels").mkdir()
    (tmp_path / "images" / "train" / "labels" / "a.txt").write_text(TWO_ROWS)
    rewrite_yaml(tmp_path, "train: images/train/images\nnames: [cat, dog]")
    assert len(read_split(tmp_path, "train", strict=True).images[0]) == 2


def test_image_ids_are_unique_over_splits(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"train": {"a": None, "b": None}, "val": {"a": None}})
    assert [image.image_id for image in read_split(tmp_path, "train").images] == [1, 2]
    assert [image.image_id for image in read_split(tmp_path, "val").images] == [3]
    numbered = write_yolo(tmp_path / "n", {"train": {"12": None, "007": None}, "val": {"3": None}})
    assert [image.image_id for image in read_split(numbered, "train").images] == [7, 12]


def test_a_yaml_file_as_the_data_set_and_other_yaml_files(tmp_path: Path) -> None:
    a_set(tmp_path)
    assert len(read_split(tmp_path / "data.yaml", "train", strict=True)) == 2
    (tmp_path / "data.yaml").rename(tmp_path / "animals.yaml")
    (tmp_path / "hyper.yaml").write_text("lr: 1e-3")
    (tmp_path / "broken.yaml").write_text("a: [")
    assert len(read_split(tmp_path, "train", strict=True)) == 2
    (tmp_path / "second.yml").write_text("train: images/train\nnames: [x]")
    with pytest.raises(UserError, match=r"several files .*animals\.yaml, .*second\.yml"):
        read_split(tmp_path, "train")
    assert len(read_split(tmp_path / "second.yml", "train").classes) == 1


# --- broken -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "kind", "kept"),
    [
        ("0 0.5 0.5 0 0.5", "zero-size-box", 2),
        ("0 0.5 0.5 -0.2 0.5", "negative-box", 2),
        ("0 1.5 0.5 0.2 0.5", "box-outside-image", 2),
        ("0 0.95 0.5 0.2 0.5", "box-over-border", 3),
        ("0 nan 0.5 0.2 0.5", "box-not-finite", 2),
        ("0 0.5 0.5 -inf 0.5", "box-not-finite", 2),
        ("0 0.5 0.5 inf 0.5", "not-a-fraction", 2),
        ("0 32 24 16 12", "not-a-fraction", 2),
        ("0 0.5 0.5 0.2", "wrong-column-count", 2),
        ("0", "wrong-column-count", 2),
        ("0 0.5 0.5 0.2 0.5 0.9 0.9 0.5", "wrong-column-count", 2),
        ("2 0.5 0.5 0.2 0.5", "class-out-of-range", 2),
        ("-1 0.5 0.5 0.2 0.5", "class-out-of-range", 2),
        ("0.5 0.5 0.5 0.2 0.5", "class-out-of-range", 2),
        ("nan 0.5 0.5 0.2 0.5", "class-out-of-range", 2),
        ("cat 0.5 0.5 0.2 0.5", "not-a-number", 2),
        ("0 0,5 0,5 0,2 0,5", "not-a-number", 2),
        ("0 0.1 0.1 nan 0.2 0.3 0.3", "box-not-finite", 2),
    ],
)
def test_broken_rows_are_dropped_and_named(tmp_path: Path, row: str, kind: str, kept: int) -> None:
    a_set(tmp_path)
    (tmp_path / "labels" / "train" / "a.txt").write_text(f"{TWO_ROWS}\n{row}\n")
    split = read_split(tmp_path, "train")
    problem = split.problems[-1]
    assert (problem.kind, problem.where) == (kind, "labels/train/a.txt:4")
    assert len(split) == 2
    assert len(split.images[0]) == kept
    assert np.isfinite(split.images[0].boxes_xyxy).all()
    with pytest.raises(UserError, match=r"has 1 problem \(labels/train/a\.txt:4"):
        read_split(tmp_path, "train", strict=True)


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_unreadable_images_are_left_out(tmp_path: Path, content: bytes) -> None:
    a_set(tmp_path)
    (tmp_path / "images" / "train" / "a.jpg").write_bytes(content)
    split = read_split(tmp_path, "train")
    (problem,) = split.problems
    assert (problem.kind, problem.where) == ("unreadable-image", "images/train/a.jpg")
    assert [image.file_name for image in split.images] == ["images/train/b.jpg"]


@pytest.mark.parametrize("content", [b"\xff\xfe\xff", b"0 0.5 0.5 0.5 0.5\n" * 2**20])
def test_unreadable_labels_leave_their_image_out(tmp_path: Path, content: bytes) -> None:
    a_set(tmp_path)
    (tmp_path / "labels" / "train" / "a.txt").write_bytes(content)
    split = read_split(tmp_path, "train")
    (problem,) = split.problems
    assert (problem.kind, problem.where) == ("unreadable-labels", "labels/train/a.txt")
    assert [image.file_name for image in split.images] == ["images/train/b.jpg"]


def test_labels_without_image(tmp_path: Path) -> None:
    a_set(tmp_path)
    (tmp_path / "labels" / "train" / "gone.txt").write_text(TWO_ROWS)
    (tmp_path / "labels" / "train" / "classes.txt").write_text("cat\ndog")
    (problem,) = read_split(tmp_path, "train").problems
    assert (problem.kind, problem.where) == ("label-without-image", "labels/train/gone.txt")


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("images/train/c.jpg", "missing-image"),
        ("images/train/a.jpg", "duplicate-image"),
        ("../../etc/passwd", "outside-root"),
        ("/etc/passwd", "outside-root"),
    ],
)
def test_broken_lists(tmp_path: Path, line: str, kind: str) -> None:
    a_set(tmp_path)
    (tmp_path / "list.txt").write_text(f"images/train/a.jpg\n{line}\n")
    rewrite_yaml(tmp_path, "train: list.txt\nnames: [cat, dog]")
    split = read_split(tmp_path, "train")
    (problem,) = split.problems
    assert (problem.kind, problem.where) == (kind, "list.txt:2")
    assert len(split) == 1


@pytest.mark.parametrize(
    ("yaml", "complaint"),
    [
        ("train: [", "not valid YAML"),
        ("[" * 1500, "not valid YAML"),
        ("- a\n- b", "does not describe"),
        ("train: images/train", "has no names"),
        ("train: images/train\nnames: cat", "has no names"),
        ("train: images/train\nnames: {cat: 0}", "must be numbered"),
        ("train: images/train\nnames: [[cat]]", "must be a string"),
        ("train: {a: b}\nnames: [cat]", "must be a path"),
        ("path: [x]\ntrain: images/train\nnames: [cat]", "path of .* must be a folder"),
        ("train: images/nowhere\nnames: [cat]", "there is no"),
        ("train: /etc\nnames: [cat]", "leads out of the data set"),
        ("train: ../../../..\nnames: [cat]", "leads out of the data set"),
        ("path: /\ntrain: etc\nnames: [cat]", "leads out of its folder"),
    ],
)
def test_unusable_yaml(tmp_path: Path, yaml: str, complaint: str) -> None:
    rewrite_yaml(a_set(tmp_path), yaml)
    with pytest.raises(UserError, match=complaint) as raised:
        read_split(tmp_path, "train", format="yolo")
    assert str(tmp_path / "data.yaml") in str(raised.value)


def test_someone_elses_path_is_mentioned(tmp_path: Path) -> None:
    rewrite_yaml(a_set(tmp_path), "path: /content/nowhere/set\ntrain: images/train\nnc: 3\nnames: [cat, dog]")
    split = read_split(tmp_path, "train")
    assert [problem.kind for problem in split.problems] == ["path-not-found", "class-count"]
    assert len(split) == 2


def test_a_broken_split_does_not_break_the_others(tmp_path: Path) -> None:
    rewrite_yaml(a_set(tmp_path), "train: images/train\nval: images/nowhere\nnames: [cat, dog]")
    assert len(read_split(tmp_path, "train", strict=True)) == 2
    with pytest.raises(UserError, match=r"val of .* names images/nowhere, but there is no"):
        read_split(tmp_path, "val")


def test_nothing_left(tmp_path: Path) -> None:
    a_set(tmp_path)
    for image in (tmp_path / "images" / "train").iterdir():
        image.unlink()
    with pytest.raises(UserError, match="no image that can be used"):
        read_split(tmp_path, "train")


sides = st.floats(0.01, 0.4)
boxes = st.tuples(st.floats(0.2, 0.8), st.floats(0.2, 0.8), sides, sides)
objects = st.lists(st.tuples(st.integers(0, 1), boxes), max_size=4)


@given(st.lists(objects, min_size=1, max_size=3))
@settings(max_examples=25)
def test_round_trip(images: list[list[tuple[int, tuple[float, float, float, float]]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        texts = ["\n".join(f"{label} " + " ".join(map(repr, box)) for label, box in row) for row in images]
        write_yolo(Path(folder), {"train": {str(index): text for index, text in enumerate(texts)}})
        split = read_split(folder, "train", strict=True)
        for image in split.images:
            expected = images[image.image_id]
            assert image.labels.tolist() == [label for label, _ in expected]
            centres = np.array([box[:2] for _, box in expected]).reshape(-1, 2)
            spans = np.array([box[2:] for _, box in expected]).reshape(-1, 2)
            corners = np.concatenate([centres - spans / 2, centres + spans / 2], axis=1)
            np.testing.assert_allclose(image.boxes_xyxy, corners * (64, 48, 64, 48), atol=1e-9)


@given(st.binary(max_size=60))
@settings(max_examples=40)
def test_no_label_file_gets_past_the_reader(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        a_set(Path(folder))
        (Path(folder) / "labels" / "train" / "a.txt").write_bytes(content)
        split = read_split(folder, "train")
        assert all(np.isfinite(image.boxes_xyxy).all() for image in split.images)


@given(st.text(max_size=60))
@settings(max_examples=40)
def test_no_yaml_gets_past_the_reader(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        a_set(Path(folder))
        (Path(folder) / "data.yaml").write_text(text, encoding="utf-8")
        with pytest.raises(UserError):
            read_split(folder, "train", format="yolo")

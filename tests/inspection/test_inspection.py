from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from deformable_detr.errors import UserError
from deformable_detr.inspection import DataReport, inspect, print_report
from tests.support.dataset_files import (
    coco_content,
    write_coco,
    write_image,
    write_json,
    write_yolo,
)
from tests.support.paths import data_set

CAT = ("cat", (1.0, 2.0, 11.0, 22.0))
DOG = ("dog", (5.0, 5.0, 50.0, 40.0))


def printed(report: DataReport, width: int = 80) -> str:
    console = Console(file=StringIO(), width=width)
    print_report(report, console)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_tiny_coco() -> None:
    report = inspect(data_set("tiny_coco"))
    assert (report.format, report.formats) == ("coco", ("coco",))
    train, val = report.splits
    assert (train.name, train.images, train.boxes, train.crowds, train.empty_images) == (
        "train2017",
        50,
        470,
        5,
        1,
    )
    assert (val.images, val.boxes, val.crowds, val.empty_images) == (50, 382, 5, 2)
    assert [round(100 * share) for share in (train.small, train.medium, train.large)] == [51, 32, 17]
    assert len(train.classes) == 80
    assert sum(row.boxes for row in train.classes) == 465
    assert train.problems == val.problems == ()
    assert train.images_checked == "decode"
    assert "parking meter" in train.classes_without_box


def test_bccd_voc_names_its_problems() -> None:
    report = inspect(data_set("bccd_voc"), splits=("train", "val", "test"))
    content = report.to_dict()
    assert [split["images"] for split in content["splits"]] == [205, 87, 72]
    assert [split["boxes"] for split in content["splits"]] == [2804, 1137, 945]
    assert content["splits"][0]["problems"] == {
        "zero-size-box": {
            "count": 1,
            "examples": [
                {
                    "where": "Annotations/BloodImage_00343.xml:55",
                    "message": "box from (181, 329) to (181, 329) has no area: dropped",
                }
            ],
        }
    }
    text = printed(report)
    assert "Annotations/BloodImage_00343.xml:55" in text
    assert "Annotations/BloodImage_00338.xml:163" in text
    assert "No problems found" not in text


def test_aerial_cars_in_both_layouts() -> None:
    coco = inspect(data_set("aerial_cars"))
    yolo = inspect(data_set("aerial_cars"), format="yolo")
    assert coco.formats == yolo.formats == ("coco", "yolo")
    for one, other in zip(coco.splits, yolo.splits, strict=True):
        assert (one.boxes, one.objects_max, one.classes) == (other.boxes, other.objects_max, other.classes)
        assert one.smallest_image == other.smallest_image
    assert coco.splits[1].objects_max == 54
    assert (coco.splits[1].smallest_image, coco.splits[1].largest_image) == ((430, 1764), (1080, 1920))
    assert [row.boxes for row in coco.splits[0].classes][-1] == 0
    assert coco.splits[0].classes_without_box == ("cyclist",)
    assert [problem.kind for problem in yolo.splits[0].problems] == ["box-over-border"] * 3
    assert "also present: yolo" in " ".join(printed(coco).split())
    assert "1 class has no box in any split: cyclist" in printed(coco)


@pytest.mark.parametrize("folder", ["tiny_coco", "bccd_coco", "bccd_voc", "aerial_cars"])
def test_reports_fit_80_columns_and_json(folder: str) -> None:
    report = inspect(data_set(folder), images="no")
    text = printed(report)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text  # nothing had to be cut
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False)) == report.to_dict()


def test_numbers_of_a_known_set(tmp_path: Path) -> None:
    content = coco_content(
        {"a.jpg": [CAT, DOG, ("elk", (0.0, 0.0, 64.0, 48.0))], "b.jpg": [], "c.jpg": [CAT]}
    )
    content["annotations"][2] |= {"iscrowd": 1}
    content["annotations"][3]["area"] = 10_000
    write_coco(tmp_path, content)
    (split,) = inspect(tmp_path).splits
    assert (split.images, split.boxes, split.crowds, split.empty_images) == (3, 4, 1, 1)
    assert (split.objects_mean, split.objects_max) == (1.0, 2)
    assert (split.small, split.medium, split.large) == (1 / 3, 1 / 3, 1 / 3)
    assert [(row.name, row.category_id, row.boxes, row.images) for row in split.classes] == [
        ("cat", 7, 2, 2),
        ("dog", 10, 1, 1),
        ("elk", 13, 0, 0),
    ]
    assert split.classes_without_box == ("elk",)


def test_a_split_without_any_object(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"train": {"a": None}})
    report = inspect(tmp_path)
    assert report.splits[0].objects_mean == report.splits[0].large == 0.0
    assert "No problems found." in printed(report)


def test_image_files_are_looked_at(tmp_path: Path) -> None:
    content = coco_content({name: [CAT] for name in ("a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg")})
    write_coco(tmp_path, content)
    images = tmp_path / "train"
    write_image(images / "a.jpg", (50, 64))
    (images / "b.jpg").write_bytes(b"no picture")
    write_image(images / "c.jpg", (64, 48), orientation=6)  # annotated as it is shown
    write_image(images / "d.jpg", (48, 64), orientation=6)  # annotated as it is stored
    report = inspect(tmp_path)
    (split,) = report.splits
    assert [(problem.kind, problem.where) for problem in split.problems] == [
        ("image-size-differs", "a.jpg"),
        ("unreadable-image", "b.jpg"),
    ]
    assert (split.rotated, split.not_rotated) == (1, 1)
    text = " ".join(printed(report).split())
    assert "train: images turned upright by their EXIF data: 1" in text
    assert "because they were annotated as stored: 1" in text
    assert "the file has 64 x 50 pixels, the annotation says 64 x 48" in text

    (unchecked,) = inspect(tmp_path, images="no").splits
    assert (unchecked.problems, unchecked.rotated, unchecked.images_checked) == ((), 0, "no")
    assert "images were not opened" in printed(inspect(tmp_path, images="no"))


def test_problems_are_counted_with_the_first_examples(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"train": {"a": "9 0.5 0.5 0.1 0.1\n" * 5 + "0 0.5 0.5 0 0\n"}})
    (split,) = inspect(tmp_path).to_dict()["splits"]
    assert list(split["problems"]) == ["class-out-of-range", "zero-size-box"]
    assert split["problems"]["class-out-of-range"]["count"] == 5
    assert len(split["problems"]["class-out-of-range"]["examples"]) == 3
    assert "and 2 more" in printed(inspect(tmp_path))


def test_remarks_are_not_problems(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"train": {"a": "0 0.1 0.1 0.5 0.1 0.5 0.5\n"}})
    report = inspect(tmp_path)
    assert report.splits[0].problems == ()
    assert [note.kind for note in report.splits[0].notes] == ["polygon"]
    assert "1 x polygon" in printed(report)


def test_names_from_files_do_not_command_the_terminal(tmp_path: Path) -> None:
    content = coco_content({"a.jpg": [("[bold]x[/wrong] \x1b[2J\ud800", (1.0, 2.0, 9.0, 9.0))]})
    write_coco(tmp_path, content)
    text = printed(inspect(tmp_path))
    assert r"[bold]x[/wrong] \x1b[2J\ud800" in text
    assert "\x1b" not in text
    text.encode("utf-8")


def test_splits_may_differ_in_their_classes(tmp_path: Path) -> None:
    write_coco(tmp_path, coco_content({"a.jpg": [CAT]}), "train")
    write_coco(tmp_path, coco_content({"a.jpg": [CAT, DOG]}), "val")
    lines = [line.split() for line in printed(inspect(tmp_path)).splitlines()]
    assert ["0", "7", "cat", "1", "1"] in lines
    assert ["-", "10", "dog", "-", "1"] in lines  # no row of the class head


def test_many_classes_are_cut(tmp_path: Path) -> None:
    content = coco_content({"a.jpg": [CAT]})
    content["categories"] += [{"id": 100 + index, "name": f"class {index}"} for index in range(150)]
    write_coco(tmp_path, content)
    text = printed(inspect(tmp_path))
    assert "and 51 more" in text
    assert len(inspect(tmp_path).to_dict()["splits"][0]["classes"]) == 151


def test_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a data set"):
        inspect(tmp_path)
    write_json(tmp_path / "annotations" / "instances_train.json", coco_content({"a.jpg": []}))
    with pytest.raises(UserError, match="no image that can be used"):
        inspect(tmp_path)
    with pytest.raises(UserError, match="has no split val"):
        inspect(tmp_path, splits=["val"])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "data.yaml").write_text("names: [a]")
    with pytest.raises(UserError, match="has no splits"):
        inspect(tmp_path / "empty")

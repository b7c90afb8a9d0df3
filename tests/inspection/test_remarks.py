"""Each remark appears where it should, with an option that keeps its promise, and nowhere else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from deformable_detr.cli import main
from deformable_detr.config import override, recipe
from deformable_detr.inspection import inspect
from tests.support.dataset_files import coco_content, write_coco
from tests.support.paths import data_set

BIG = (0.0, 0.0, 400.0, 400.0)


def remarks(root: Path, **options: Any) -> dict[str, str]:
    report = inspect(root, images="headers", **options)
    found = {remark.kind: remark.message for remark in report.remarks}
    assert len(found) == len(report.remarks)
    return found


def write(root: Path, train: dict[str, Any], val: dict[str, Any], size: tuple[int, int] = (480, 640)) -> None:
    names = sorted({name for objects in (*train.values(), *val.values()) for name, _ in objects})
    for split, images in (("train", train), ("val", val)):
        content = coco_content(images, size)
        numbers = {row["id"]: row["name"] for row in content["categories"]}
        for row in content["annotations"]:
            row["category_id"] = names.index(numbers[row["category_id"]]) + 1
        content["categories"] = [{"id": index, "name": name} for index, name in enumerate(names, start=1)]
        write_coco(root, content, split, size)


def test_nothing_to_say(tmp_path: Path) -> None:
    plenty = {f"{index}.jpg": [("cat", BIG), ("dog", BIG)] for index in range(20)}
    write(tmp_path, plenty, plenty)
    assert remarks(tmp_path) == {}


def test_small_objects_and_an_option_that_helps(tmp_path: Path) -> None:
    tiny, large = (10.0, 10.0, 20.0, 20.0), (0.0, 0.0, 200.0, 200.0)
    write(tmp_path, {"a.jpg": [("cat", tiny), ("cat", large)]}, {"b.jpg": [("cat", large)]})
    said = remarks(tmp_path)["small-objects"]
    assert said.startswith("33% of the objects are smaller than a cell of the finest level (8 pixels)")
    assert "train.fit_to_data" in said
    options = dict(re.findall(r"--data\.(\w+) (\S+)", said))
    share = float(re.search(r"make it (\d+)%", said)[1])  # type: ignore[index]
    changes: dict[str, Any] = {
        "image_size": int(options["image_size"]),
        "max_size": int(options["max_size"]),
        "train_sizes": tuple(map(int, options["train_sizes"].strip("'[]").split(","))),
    }
    then = inspect(tmp_path, override(recipe("deformable_detr_lite"), changes), images="no")
    assert round(100 * then.splits[0].sizes.below_cell) == share == 0
    assert "small-objects" not in {remark.kind for remark in then.remarks}
    assert max(changes["train_sizes"]) < 1.2 * changes["image_size"]


def test_small_objects_of_pictures_that_have_no_more(tmp_path: Path) -> None:
    write(tmp_path, {"a.jpg": [("cat", (10.0, 10.0, 12.0, 12.0))]}, {"b.jpg": []}, size=(240, 320))
    assert "the pictures themselves are no larger" in remarks(tmp_path)["small-objects"]
    write(tmp_path / "tall", {"a.jpg": [("cat", (10.0, 10.0, 12.0, 12.0))]}, {"b.jpg": []}, size=(700, 900))
    assert "cut them into tiles" in remarks(tmp_path / "tall")["small-objects"]


def test_more_objects_than_queries(tmp_path: Path) -> None:
    write(tmp_path, {"a.jpg": [("cat", BIG)] * 111, "b.jpg": [("cat", BIG)] * 99}, {"c.jpg": [("cat", BIG)]})
    said = remarks(tmp_path)
    assert (
        "1 image has more objects than the 100 queries of deformable_detr_lite (at most 111)"
        in (said["more-objects-than-queries"])
    )
    options = {"num_queries": int(re.search(r"num_queries (\d+)", said["more-objects-than-queries"])[1])}  # type: ignore[index]
    assert options["num_queries"] == 150
    assert "train.fit_to_data" in said["more-objects-than-queries"]
    enough = override(recipe("deformable_detr_lite"), options)
    again = remarks(tmp_path, recipe=enough)
    assert "more-objects-than-queries" not in again
    assert "--max-detections 150" in again["more-objects-than-evaluated"]
    assert "AR100" in again["more-objects-than-evaluated"]  # AP counts more than 100 detections here


def test_wide_images(tmp_path: Path) -> None:
    write(tmp_path, {"a.jpg": [("cat", BIG)]}, {"b.jpg": []}, size=(430, 1764))
    said = remarks(tmp_path)["wide-images"]
    assert "a.jpg of 1764 x 430 is reduced to 160 pixels" in said
    max_size = int(re.search(r"--data\.max_size (\d+)", said)[1])  # type: ignore[index]
    assert "wide-images" not in remarks(
        tmp_path, recipe=override(recipe("deformable_detr_lite"), {"max_size": max_size})
    )


def test_classes(tmp_path: Path) -> None:
    many = {f"{index}.jpg": [("cat", BIG)] * 5 for index in range(20)}
    write(tmp_path, {**many, "x.jpg": [("dog", BIG), ("elk", BIG)]}, {"y.jpg": [("cat", BIG), ("fox", BIG)]})
    said = remarks(tmp_path)
    assert "1 class in val has no box in train: fox" in said["classes-missing-in-train"]
    assert "2 classes in train have no box in val: dog, elk" in said["classes-missing-in-val"]
    assert "dog (1), elk (1)" in said["rare-classes"]
    assert "cat has 100 times as many boxes as dog" in said["class-imbalance"]
    assert set(said) == {
        "classes-missing-in-train",
        "classes-missing-in-val",
        "rare-classes",
        "class-imbalance",
    }


def test_splits_that_list_other_classes(tmp_path: Path) -> None:
    write_coco(tmp_path, coco_content({"a.jpg": [("cat", (1.0, 1.0, 30.0, 30.0))]}), "train")
    write_coco(tmp_path, coco_content({"a.jpg": [("dog", (1.0, 1.0, 30.0, 30.0))]}), "val")
    assert "do not list the same classes" in remarks(tmp_path)["classes-differ"]


def test_many_empty_images(tmp_path: Path) -> None:
    write(tmp_path, {"a.jpg": [("cat", BIG)], "b.jpg": [], "c.jpg": []}, {"d.jpg": [("cat", BIG)]})
    assert "67% of the images of train have no object" in remarks(tmp_path)["many-empty-images"]


@pytest.mark.parametrize(
    ("name", "suspicious"),
    [
        ("__background__", True),
        ("Background", True),
        ("no-object", True),
        ("unlabeled", True),
        ("background car", False),
        ("bgm", False),
    ],
)
def test_background_classes(name: str, suspicious: bool, tmp_path: Path) -> None:
    write(tmp_path, {"a.jpg": [(name, BIG)]}, {"b.jpg": [(name, BIG)]})
    assert ("background-class" in remarks(tmp_path)) == suspicious


def test_real_sets() -> None:
    aerial = remarks(data_set("aerial_cars"))
    assert "small-objects" not in aerial  # 8 % in val, but less than 5 % in all
    assert "MOS155.png of 1764 x 430" in aerial["wide-images"]
    assert "start at 0 (car)" in aerial["zero-based-ids"]
    assert "80 classes with ids 1 to 90" in remarks(data_set("tiny_coco"))["sparse-ids"]
    assert remarks(data_set("bccd_voc")) == {}


def test_options_in_remarks_are_options_of_the_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = (10.0, 10.0, 22.0, 22.0)
    write(tmp_path, {"a.jpg": [("cat", tiny)] * 120}, {"b.jpg": [("cat", BIG)]}, size=(480, 1600))
    text = " ".join(remarks(tmp_path).values())
    options = [part for pair in re.findall(r"(--(?:data|model)\.\w+) ([\d\[\],]+)", text) for part in pair]
    assert len(options) >= 8
    assert main(["inspect", str(tmp_path), "--images", "no", *options]) == 0
    assert "more objects than" not in capsys.readouterr().out

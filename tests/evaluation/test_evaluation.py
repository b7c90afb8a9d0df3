"""Evaluation with a detector that sees coloured rectangles, so that every number is known beforehand."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from deformable_detr.config import DataConfig
from deformable_detr.data.formats import read_split
from deformable_detr.data.records import ImageRecord, Split
from deformable_detr.detections import ClassTable, Detections
from deformable_detr.errors import UserError
from deformable_detr.evaluation import (
    collect_detections,
    evaluate,
    ground_truth_of,
    match_classes,
    print_metrics,
)
from deformable_detr.evaluation import run as module
from deformable_detr.evaluation.average_precision import (
    COCO_METRICS,
    coco_average_precision,
    voc_average_precision,
)
from tests.support.paths import data_set

COLOURS = ("red", "green", "blue")
# Sizes (H, W) of the pictures, in the order of their ids; two shapes that alternate, and one alone.
SIZES = ((40, 60), (60, 40), (40, 60), (60, 40), (40, 60), (50, 50))


class ColourDetector:
    """Stands in for a `Detector`: in each channel, the box around what shines.

    Pictures are seen at half their size. Keeps what it was given in `batches`: shapes (h, w).
    """

    def __init__(self, classes: ClassTable | None = None, scores: Sequence[float] = (0.9, 0.8, 0.7)) -> None:
        self.classes = classes or ClassTable.from_names(COLOURS)
        self.scores = scores
        self.data = DataConfig()
        self.batches: list[list[tuple[int, ...]]] = []
        self.max_detections: set[int] = set()

    def resized_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return size[0] // 2, size[1] // 2

    def preprocess(self, picture: Image.Image) -> Tensor:
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[:, ::2, ::2] / 255

    def detect(
        self,
        pixels: Sequence[Tensor],
        original_sizes: Sequence[tuple[int, int]],
        *,
        max_detections: int = 100,
    ) -> list[Detections]:
        assert torch.is_inference_mode_enabled()
        self.batches.append([tuple(image.shape[1:]) for image in pixels])
        self.max_detections.add(max_detections)
        return [self._detect(image, size) for image, size in zip(pixels, original_sizes, strict=True)]

    def _detect(self, image: Tensor, size: tuple[int, int]) -> Detections:
        boxes, labels = [], []
        for label in range(3):
            rows, columns = (image[label] > 0.5).nonzero(as_tuple=True)
            if len(rows):
                boxes.append([2 * columns.min(), 2 * rows.min(), 2 * columns.max() + 2, 2 * rows.max() + 2])
                labels.append(label)
        return Detections(
            boxes_xyxy=np.array(boxes, dtype=np.float32).reshape(-1, 4),
            scores=np.array([self.scores[label] for label in labels], dtype=np.float32),
            labels=np.array(labels, dtype=np.int64),
            category_ids=np.array([self.classes.category_ids[label] for label in labels], dtype=np.int64),
            names=tuple(self.classes.name(label) for label in labels),
            image_size=size,
        )


def make_split(folder: Path, classes: ClassTable | None = None) -> Split:
    """Six pictures with a rectangle per class, in a channel each; the last picture is empty."""
    classes = classes or ClassTable(COLOURS, (7, 5, 90))
    folder.mkdir(parents=True, exist_ok=True)
    images = []
    for index, (height, width) in enumerate(SIZES):
        pixels = np.zeros((height, width, 3), dtype=np.uint8)
        boxes = np.array([[2, 4, 20, 30], [10, 20, 30, 36], [30, 2, 38, 12]], dtype=np.float64)
        boxes = boxes[: 0 if index == len(SIZES) - 1 else 3]
        for channel, (x0, y0, x1, y1) in enumerate(boxes.astype(int)):
            pixels[y0:y1, x0:x1, channel] = 255
        path = folder / f"{index}.png"
        Image.fromarray(pixels).save(path)
        images.append(
            ImageRecord(
                path=path,
                file_name=path.name,
                image_id=100 + index,
                size=(height, width),
                boxes_xyxy=boxes,
                labels=np.arange(len(boxes)),
                crowd=np.zeros(len(boxes), dtype=bool),
                difficult=np.zeros(len(boxes), dtype=bool),
                area=(boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
                annotation_ids=np.arange(len(boxes)) + 10 * index,
            )
        )
    return Split(name="val", format="coco", source=folder, classes=classes, images=tuple(images))


@pytest.fixture
def split(tmp_path: Path) -> Split:
    return make_split(tmp_path / "data")


def quiet() -> Console:
    return Console(file=io.StringIO(), width=80)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return " ".join(console.file.getvalue().split())


# --- evaluate --------------------------------------------------------------------------------------------


def test_a_perfect_detector_gets_everything(split: Split) -> None:
    console = quiet()
    metrics = evaluate(ColourDetector(), split, console=console)
    assert metrics["AP"] == metrics["AP50"] == metrics["AR100"] == metrics["APs"] == pytest.approx(1)
    assert metrics["APl"] == -1
    assert metrics["per_class"] == {name: pytest.approx({"AP": 1, "AP50": 1}) for name in COLOURS}
    assert set(COCO_METRICS) <= metrics.keys()
    seconds = metrics.pop("seconds")
    assert seconds > 0
    assert {key: metrics[key] for key in metrics if key not in (*COCO_METRICS, "per_class")} == {
        "metric": "coco",
        "split": "val",
        "images": 6,
        "batching": "exact",
        "batch_size": 2,
        "threshold": 0.0,
        "max_detections": 100,
        "classes_not_in_model": [],
    }
    assert printed(console) == ""


def test_pascals_metric_and_its_options(split: Split) -> None:
    metrics = evaluate(
        ColourDetector(), split, metric="voc", interpolation="11_point", iou_threshold=0.75, console=quiet()
    )
    assert metrics["mAP"] == pytest.approx(1)
    assert metrics["per_class"] == {name: {"AP": pytest.approx(1)} for name in COLOURS}
    options = ("metric", "interpolation", "iou_threshold", "plus_one")
    assert [metrics[key] for key in options] == ["voc", "11_point", 0.75, False]
    assert "AP" not in metrics


def test_classes_that_the_model_lacks_are_reported(tmp_path: Path) -> None:
    split = make_split(tmp_path, ClassTable((" Red", "purple", "BLUE"), (1, 2, 3)))
    console = quiet()
    metrics = evaluate(ColourDetector(), split, console=console)
    assert metrics["classes_not_in_model"] == ["purple"]
    assert {name: round(numbers["AP"], 6) for name, numbers in metrics["per_class"].items()} == {
        " Red": 1,
        "purple": 0,
        "BLUE": 1,
    }
    assert metrics["AP"] == pytest.approx(2 / 3)
    assert "The model does not have purple, which count as never found." in printed(console)


def test_the_result_is_written_whole(split: Split, tmp_path: Path) -> None:
    output = tmp_path / "new" / "folder" / "metrics.json"
    metrics = evaluate(ColourDetector(), split, output=output, console=quiet())
    assert json.loads(output.read_text()) == metrics
    assert [path.name for path in output.parent.iterdir()] == ["metrics.json"]
    evaluate(ColourDetector(), split, output=str(output), batch_size=3, console=quiet())
    assert json.loads(output.read_text())["batch_size"] == 3


def test_a_model_by_name_and_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = make_split(tmp_path / "data" / "val")
    (tmp_path / "data" / "annotations").mkdir()
    ground_truth = ground_truth_of(split)
    broken = {**ground_truth["annotations"][0], "id": 999, "bbox": [3.0, 3.0, 0.0, 5.0]}
    ground_truth["annotations"].append(broken)
    (tmp_path / "data" / "annotations" / "instances_val.json").write_text(json.dumps(ground_truth))
    loaded = []

    def load(model: str | Path, device: str, max_pixels: int | None = None) -> ColourDetector:
        loaded.append((model, device))
        return ColourDetector()

    monkeypatch.setattr(module, "load", load)
    console = quiet()
    metrics = evaluate("runs/x", tmp_path / "data", device="cpu", console=console)
    assert ": 1 (`deformable-detr inspect` lists them)." in printed(console)
    assert loaded == [("runs/x", "cpu")]
    assert (metrics["images"], metrics["split"]) == (6, "val")
    assert metrics["AP"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "lvis"}, "metric must be coco or voc, not lvis"),
        ({"batching": "some"}, "batching must be exact or padded, not some"),
        ({"batching": "padded", "tta": True}, "batching padded has no effect on tta"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"max_detections": 0}, "max_detections must be at least 1, not 0"),
        ({"threshold": 1.5}, r"threshold must be between 0 and 1, not 1.5"),
        ({"device": "cpu"}, "device=cpu cannot move a detector"),
        ({"metric": "voc", "iou_threshold": 2.0}, "iou_threshold must be in"),
        ({"output": "."}, "--output . is a folder: name a file"),
        ({"output": "/dev/null/metrics.json"}, "--output /dev/null/metrics.json cannot be created"),
    ],
)
def test_wrong_options(split: Split, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(ColourDetector(), split, console=quiet(), **options)


def test_wrong_options_are_found_before_the_work(split: Split) -> None:
    detector = ColourDetector()
    with pytest.raises(UserError):
        evaluate(detector, split, metric="voc", interpolation="12_point", console=quiet())  # type: ignore[arg-type]
    assert detector.batches == []


def test_a_split_without_images(split: Split) -> None:
    with pytest.raises(UserError, match="the split val has no images to evaluate on"):
        evaluate(ColourDetector(), replace(split, images=()), console=quiet())


# --- collect_detections ----------------------------------------------------------------------------------


def test_rows_have_the_ids_of_the_data_set(split: Split) -> None:
    rows = collect_detections(ColourDetector(), split, console=quiet())
    assert [(row["image_id"], row["category_id"]) for row in rows] == [
        (100 + image, category_id) for image in range(5) for category_id in (7, 5, 90)
    ]
    assert rows[0] == {
        "image_id": 100,
        "category_id": 7,
        "bbox": [2.0, 4.0, 18.0, 26.0],
        "score": pytest.approx(0.9),
    }


def test_exact_batches_hold_one_shape_and_padded_ones_neighbours(split: Split) -> None:
    exact, padded = ColourDetector(), ColourDetector()
    rows = collect_detections(exact, split, batching="exact", batch_size=2, console=quiet())
    assert exact.batches == [[(20, 30), (20, 30)], [(20, 30)], [(30, 20), (30, 20)], [(25, 25)]]
    assert rows == collect_detections(padded, split, batching="padded", batch_size=4, console=quiet())
    assert padded.batches == [[(20, 30), (30, 20), (20, 30), (30, 20)], [(20, 30), (25, 25)]]


def test_threshold_and_max_detections(split: Split) -> None:
    detector = ColourDetector()
    rows = collect_detections(detector, split, threshold=0.75, max_detections=17, console=quiet())
    assert {row["category_id"] for row in rows} == {7, 5}
    assert detector.max_detections == {17}


def test_classes_that_only_the_model_has_are_dropped(tmp_path: Path) -> None:
    split = make_split(tmp_path, ClassTable(("blue", "sky", "sea"), (1, 2, 3)))
    rows = collect_detections(ColourDetector(), split, console=quiet())
    assert {row["category_id"] for row in rows} == {1}
    assert len(rows) == 5


def test_a_picture_of_another_size_than_annotated(split: Split) -> None:
    images = (replace(split.images[0], size=(41, 60)), *split.images[1:])
    with pytest.raises(UserError, match=r"0\.png has 60 x 40 pixels, but .* says 60 x 41"):
        collect_detections(ColourDetector(), replace(split, images=images), console=quiet())


def test_a_picture_that_cannot_be_read(split: Split) -> None:
    split.images[3].path.write_bytes(b"not a picture")
    with pytest.raises(UserError, match=r"3\.png"):
        collect_detections(ColourDetector(), split, console=quiet())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_output_that_is_not_finite(split: Split, bad: float) -> None:
    with pytest.raises(UserError, match=r"the model's output for .*0\.png is not finite"):
        collect_detections(ColourDetector(scores=(0.9, bad, 0.7)), split, console=quiet())


# --- a Split's ground truth ------------------------------------------------------------------------------


def test_ground_truth_of_a_split() -> None:
    def image(image_id: int, boxes: list[list[float]], **arrays: list[float]) -> ImageRecord:
        count = len(boxes)
        return ImageRecord(
            path=Path(f"{image_id}.jpg"),
            file_name=f"{image_id}.jpg",
            image_id=image_id,
            size=(40, 60),
            boxes_xyxy=np.array(boxes, dtype=np.float64).reshape(-1, 4),
            labels=np.array(arrays.get("labels", [0] * count), dtype=np.int64),
            crowd=np.array(arrays.get("crowd", [0] * count), dtype=bool),
            difficult=np.array(arrays.get("difficult", [0] * count), dtype=bool),
            area=np.array(arrays.get("area", [7.5] * count), dtype=np.float64),
            annotation_ids=np.arange(count, dtype=np.int64) + 100 * image_id,
        )

    split = Split(
        name="val",
        format="coco",
        source=Path("instances.json"),
        classes=ClassTable(("cat", None, "dog"), (3, 4, 90)),
        images=(
            image(1, [[1, 2, 4, 8], [0, 0, 5, 5]], labels=[2, 0], crowd=[0, 1], difficult=[1, 0]),
            image(2, []),
        ),
    )
    ground_truth = ground_truth_of(split)
    assert json.loads(json.dumps(ground_truth)) == {
        "images": [
            {"id": 1, "file_name": "1.jpg", "height": 40, "width": 60},
            {"id": 2, "file_name": "2.jpg", "height": 40, "width": 60},
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 90, "name": "dog"}],
        "annotations": [
            {
                "id": 100,
                "image_id": 1,
                "category_id": 90,
                "bbox": [1.0, 2.0, 3.0, 6.0],
                "area": 7.5,
                "iscrowd": 0,
                "difficult": 1,
            },
            {
                "id": 101,
                "image_id": 1,
                "category_id": 3,
                "bbox": [0.0, 0.0, 5.0, 5.0],
                "area": 7.5,
                "iscrowd": 1,
                "difficult": 0,
            },
        ],
    }
    # The dog is difficult: wanted by COCO, not by Pascal. The cat is a crowd: wanted by neither.
    assert coco_average_precision(ground_truth, [])["per_class"] == {"dog": {"AP": 0, "AP50": 0}}
    assert voc_average_precision(ground_truth, [])["per_class"] == {}


@pytest.mark.parametrize(
    ("folder", "split", "golden"),
    [
        ("tiny_coco", "val", "F_generated_tiny_coco_val"),
        ("aerial_cars", "val", "F_generated_aerial_val_category_id_zero"),
        ("bccd_coco", "test", "F_generated_bccd_test"),
    ],
)
def test_a_split_that_was_read_gives_the_numbers_of_its_file(folder: str, split: str, golden: str) -> None:
    ground_truth = ground_truth_of(read_split(data_set(folder), split, format="coco"))
    goldens = data_set(f"eval_goldens/{golden}")
    metrics = coco_average_precision(ground_truth, json.loads((goldens / "dt.json").read_text()))
    expected = json.loads((goldens / "expected.json").read_text())["computed_pycocotools_2.0.11"]
    assert {key: metrics[key] for key in COCO_METRICS} == pytest.approx(expected, abs=1e-9)


# --- classes ---------------------------------------------------------------------------------------------


def test_classes_are_matched_by_name_exact_spelling_first() -> None:
    model = ClassTable(("dog", None, "Cat", "cat ", "unicorn"), (0, 1, 2, 3, 4))
    data = ClassTable(("CAT", "Cat", "Dog", "bird"), (11, 12, 13, 14))
    assert match_classes(model, data, Path("data")) == {0: 13, 2: 12, 3: 11}


def test_classes_of_the_same_name_are_matched_in_order() -> None:
    table = ClassTable(("net", "net", "rod"), (4, 9, 1))
    assert match_classes(table, table, Path("data")) == {0: 4, 1: 9, 2: 1}


def test_no_class_in_common() -> None:
    model = ClassTable.from_names([f"kind {index}" for index in range(30)])
    with pytest.raises(
        UserError,
        match=r"the model has kind 0, kind 1, kind 2, kind 3, kind 4, … and 25 more, the data have cat;",
    ):
        match_classes(model, ClassTable.from_names(["cat"]), Path("data"))


# --- several processes -----------------------------------------------------------------------------------

SECOND_PROCESS = """
import json, sys
from pathlib import Path
from tests.evaluation.test_evaluation import ColourDetector, evaluate, make_split, quiet
print("ready", flush=True)
folder, detector = Path(sys.argv[1]), ColourDetector()
metrics = evaluate(detector, make_split(folder / "data1"), output=folder / "metrics.json", console=quiet())
print(json.dumps([metrics, len(detector.batches)]))
"""


def test_two_processes_share_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is the first one, as torchrun would start it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in {**group, "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    with subprocess.Popen(
        [sys.executable, "-c", SECOND_PROCESS, str(tmp_path)],
        env={**os.environ, **group, "RANK": "1", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    ) as second:
        assert second.stdout is not None
        assert second.stdout.readline() == "ready\n"
        detector = ColourDetector()
        split = make_split(tmp_path / "data0")
        metrics = evaluate(detector, split, output=tmp_path / "metrics.json", console=quiet())
        output, _ = second.communicate(timeout=600)
    assert second.returncode == 0
    assert json.loads(output.splitlines()[-1]) == [metrics, 2]  # Gloo of torch 2.10 prints a line before
    assert len(detector.batches) == 2
    assert metrics["AP"] == pytest.approx(1)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert not torch.distributed.is_initialized()


# --- print_metrics ---------------------------------------------------------------------------------------


def test_metrics_fit_into_80_columns(split: Split) -> None:
    console = quiet()
    metrics = evaluate(ColourDetector(), split, console=quiet())
    metrics["per_class"] = {
        f"[bold]a class with quite a long name, number {index}": {"AP": 0.12345, "AP50": 1.0}
        for index in range(31)
    }
    print_metrics(metrics, console)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    text = printed(console)
    assert text.count("[bold]a class") == 31
    assert text.count("12.3") == 31
    assert "│ AP │ 100.0 │ 100.0 │ n/a │ n/a │" in text
    assert "6 images of val in" in text


def test_metrics_of_pascal(split: Split) -> None:
    console = quiet()
    print_metrics(evaluate(ColourDetector(), split, metric="voc", console=quiet()), console)
    assert printed(console).startswith("mAP 100.0 (Pascal VOC, in percent) 3 classes")

"""The report: it says the evaluator's numbers, holds whatever the run is like, and loads nothing."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deformable_detr.cli.main import COMMANDS, main
from deformable_detr.data.formats import read_split
from deformable_detr.detections import ClassTable
from deformable_detr.errors import UserError
from deformable_detr.evaluation import collect_detections, evaluate, ground_truth_of
from deformable_detr.evaluation.average_precision import coco_average_precision
from deformable_detr.inference.detector import Detector
from deformable_detr.inference.loading import load, new_checkpoint
from deformable_detr.inference.tta import augmented
from deformable_detr.report import report_text, write_report
from deformable_detr.report.accuracy import Cut, Mistake, measure, mistakes
from deformable_detr.report.accuracy_sections import MAX_IN_MATRIX, fold
from deformable_detr.report.pictures import spread, varied
from deformable_detr.run_folder.names import REPORT_PAGE
from deformable_detr.run_folder.reading import changes_from_recipe, read_history
from deformable_detr.training import finish as training
from deformable_detr.training.run import train
from deformable_detr.words import percent
from tests.support.html_elements import NestedElements
from tests.support.small_models import randomise
from tests.support.tiny import as_detr, changed_data, rows, tiny_config

pytestmark = pytest.mark.usefixtures("one_thread")

EVIL = '</script><img src=x onerror="alert(1)">&amp;{{title}}'
EVIL_FILE = '"><img src=x onerror="alert(2)">'
MAX_BYTES = 5_000_000


class Reader(NestedElements):
    """Keeps the text of elements, and the cells of every table row."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str) -> None:
        self.texts: dict[str, list[str]] = {}
        self.rows: list[list[str]] = []
        super().__init__(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        super().handle_starttag(tag, attrs)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in self.VOID:
            self.texts.setdefault(tag, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            if tag not in ("body", "html", "main"):
                self.texts[tag][-1] += data
        if {"td", "th"} & set(self.open) and "svg" not in self.open:
            self.rows[-1][-1] += data


def checked(text: str) -> Reader:
    """Well-formed, small, and without anything from outside."""
    assert len(text.encode()) < MAX_BYTES
    reader = Reader(text)
    policy = next(a for _, a in reader.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert str(policy["content"]).startswith("default-src 'none'; img-src data:")
    for tag, attributes in reader.elements:
        assert tag not in ("link", "iframe", "object", "base", "form")
        for name in ("src", "href", "data", "xlink:href"):
            value = attributes.get(name) or ""
            assert value == "" or value.startswith(("#", "data:image/jpeg;base64,")), value
    assert not re.search(r"https?:|@import|url\(", text)
    images = [attributes for tag, attributes in reader.elements if tag == "img"]
    assert all(attributes["alt"] for attributes in images)
    charts = [attributes for tag, attributes in reader.elements if tag == "svg" and "role" in attributes]
    assert all(attributes["aria-label"] for attributes in charts)
    links = {a["href"] for tag, a in reader.elements if tag == "a"}
    assert links == {f"#{a['id']}" for tag, a in reader.elements if tag == "section"}
    assert "nan" not in re.sub(r"data:image/jpeg;base64,[^\"]*", "", text)
    return reader


@pytest.fixture(scope="module")
def run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """A tiny run that wrote its report."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    train(tiny_data, tiny_config(report=True, epochs=3), folder)
    return folder


def subject(names: tuple[str, ...], seed: int = 0, **changes: Any) -> Detector:
    """Untrained, with weights that give detections of all kinds."""
    torch.manual_seed(seed)
    config = tiny_config(**changes)
    table = ClassTable.from_names(names)
    checkpoint = new_checkpoint(config.model, table, config.data, config.recipe, None)
    randomise(checkpoint.model)
    return Detector.of(checkpoint, "cpu")


def text_of(detector: Detector, data: Path, split: str = "val", model: str = "model") -> str:
    part = read_split(data, split)
    detections = collect_detections(detector, part, progress=False)
    return report_text(detector, detections, part, None, model=model, data=str(data))


# ---------------------------------------------------------------- a real run


def test_training_leaves_a_report_with_its_numbers(run: Path, tiny_data: Path) -> None:
    text = (run / REPORT_PAGE).read_text(encoding="utf-8")
    reader = checked(text)
    best = max(rows(run, "evaluation"), key=lambda row: row["AP"])
    metrics = evaluate(load(run), tiny_data, progress=False)
    assert metrics["AP"] == pytest.approx(best["AP"], abs=1e-9)
    (all_classes,) = [row for row in reader.rows if row and row[0] == "all"]
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")
    assert all_classes[3:10] == [percent(metrics[name]) for name in names]
    for name, numbers in metrics["per_class"].items():
        (cells,) = [row for row in reader.rows if row and row[0] == name and len(row) == 14]
        assert cells[3:5] == [percent(numbers["AP"]), percent(numbers["AP50"])]
    assert f"val: 6 images, {len(ground_truth_of(read_split(tiny_data, 'val'))['annotations'])} obj" in text
    for change in changes_from_recipe(tiny_config(report=True, epochs=3)):
        assert any(row and row[0] == change.path for row in reader.rows), change
    assert "3 epochs, 18 updates" in text
    assert "cpu, " in text
    assert f"torch {torch.__version__}" in text


def test_what_it_recommends_to_run_can_be_run(run: Path) -> None:
    text = (run / REPORT_PAGE).read_text(encoding="utf-8")
    named = set(re.findall(r"deformable-detr ([a-z]+)", text))
    assert named
    assert named <= set(COMMANDS)


def test_the_command_makes_it_again_for_any_split(
    run: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "deep" / "page.html"
    argv = ["report", str(run), str(tiny_data), "--split", "train", "--output", str(target)]
    assert main(argv) == 0
    assert f"written: {target}" in capsys.readouterr().out
    checked(target.read_text(encoding="utf-8"))
    assert "measured on train: 12 images" in target.read_text(encoding="utf-8")
    assert write_report(run, tiny_data, progress=False, split="train") == run / "report_train.html"
    (run / "report_train.html").unlink()
    # A checkpoint alone has no history.
    alone = tmp_path / "alone.html"
    write_report(run / "checkpoints" / "last", tiny_data, alone, progress=False, most_images=1)
    text = alone.read_text(encoding="utf-8")
    checked(text)
    assert "Model report" in text
    assert "in 1 of 6 images, evenly chosen" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output", "page.txt"], "must end in .html"),
        (["--split", "nothing"], "has no split nothing"),
        (["--most-images", "0"], "most_images must be at least 1"),
    ],
)
def test_wrong_options(
    run: Path, tiny_data: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(run), str(tiny_data), *options]) == 2
    assert message in capsys.readouterr().err


def test_an_output_that_is_a_folder(run: Path, tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder"):
        write_report(run, tiny_data, tmp_path)


def test_resuming_is_noted(tiny_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(tiny_data, tiny_config(report=True, max_steps=4), folder)
    first = (folder / REPORT_PAGE).read_text(encoding="utf-8")
    assert "4 updates" in first
    train(tiny_data, None, folder, resume=True, **{"train.max_steps": 8})
    text = (folder / REPORT_PAGE).read_text(encoding="utf-8")
    checked(text)
    assert "resumed after update 4" in text
    history = read_history(folder)
    assert history is not None
    assert [start["step"] for start in history.starts] == [0, 4]


def test_a_run_without_a_validation_split(tiny_data: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    (data / "annotations" / "instances_val.json").unlink()
    train(data, tiny_config(report=True, epochs=1, ema_decay=0.0), tmp_path / "run")
    text = (tmp_path / "run" / REPORT_PAGE).read_text(encoding="utf-8")
    checked(text)
    assert "Trained, but not measured" in text
    assert "--split train" in text
    assert "12 train images" in text


def test_the_command_measures_on_val_else_on_test_else_not_at_all(
    run: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As training does for its report."""
    data, page = tmp_path / "data", tmp_path / "page.html"
    shutil.copytree(tiny_data, data)
    annotations = data / "annotations"
    (annotations / "instances_val.json").rename(annotations / "instances_test.json")
    (data / "val").rename(data / "test")
    argv = ["report", str(run), str(data), "--output", str(page)]
    assert main(argv) == 0
    assert "measured on test: 6 images" in page.read_text(encoding="utf-8")
    (annotations / "instances_test.json").unlink()
    assert main(argv) == 0
    text = page.read_text(encoding="utf-8")
    checked(text)
    assert "Trained, but not measured: the data have no split to evaluate on." in text
    assert "12 train images" in text
    assert main([*argv, "--split", "test"]) == 2, "what was asked for is refused"
    assert "has no split test" in capsys.readouterr().err


def test_a_report_that_fails_does_not_lose_the_run(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*arguments: Any, **options: Any) -> str:
        raise RuntimeError("no ink")

    monkeypatch.setattr(training, "report_text", broken)
    detector = train(tiny_data, tiny_config(report=True, epochs=1), tmp_path / "run")
    assert isinstance(detector, Detector)
    said = capsys.readouterr().out
    assert "RuntimeError: no ink" in said
    assert f"deformable-detr report {tmp_path / 'run'} {tiny_data}" in said
    assert not (tmp_path / "run" / REPORT_PAGE).exists()
    assert (tmp_path / "run" / "checkpoints" / "best" / "model.safetensors").is_file()


def test_it_can_be_switched_off(tiny_data: Path, tmp_path: Path) -> None:
    train(tiny_data, tiny_config(max_steps=1), tmp_path / "run")
    assert not (tmp_path / "run" / REPORT_PAGE).exists()


def test_a_history_of_older_versions(run: Path, tiny_data: Path, tmp_path: Path) -> None:
    # Without environment.jsonl, and rows without seconds.
    old = tmp_path / "old"
    shutil.copytree(run, old)
    (old / "environment.jsonl").unlink()
    lines = [json.loads(line) for line in (old / "metrics.jsonl").read_text().splitlines()]
    text = "".join(json.dumps({k: v for k, v in row.items() if k != "seconds"}) + "\n" for row in lines)
    (old / "metrics.jsonl").write_text(text)
    write_report(old, tiny_data, progress=False)
    checked((old / REPORT_PAGE).read_text(encoding="utf-8"))


# ---------------------------------------------------------------- whatever the data are like


def test_names_are_text(tiny_data: Path, tmp_path: Path) -> None:
    def rename(content: dict[str, Any]) -> None:
        content["categories"][0]["name"] = EVIL
        for image in content["images"]:
            image["file_name"] = EVIL_FILE + image["file_name"]

    data = changed_data(tiny_data, tmp_path / "a <b> & {{sections}}", rename)
    for picture in list((data / "val").iterdir()):
        picture.rename(picture.with_name(EVIL_FILE + picture.name))
    names = read_split(data, "val").classes.names
    text = text_of(subject(tuple(str(name) for name in names)), data, model="runs/<i>'x'")
    reader = checked(text)
    assert [tag for tag, _ in reader.elements].count("script") == 1
    assert not any(attributes.get("onerror") for _, attributes in reader.elements)
    assert any(row and row[0] == EVIL for row in reader.rows)
    assert any("a <b> & {{sections}}" in title for title in reader.texts["h1"])
    assert any(EVIL_FILE in caption for caption in reader.texts["figcaption"])
    assert any(EVIL_FILE in str(attributes.get("alt")) for tag, attributes in reader.elements if tag == "img")


def test_ninety_one_classes(tiny_data: Path, tmp_path: Path) -> None:
    def widen(content: dict[str, Any]) -> None:
        content["categories"] += [{"id": 1000 + n, "name": f"class {n}"} for n in range(85)]
        for index, annotation in enumerate(content["annotations"]):
            if index % 2:
                annotation["category_id"] = 1000 + index % 85

    data = changed_data(tiny_data, tmp_path / "data", widen)
    names = tuple(str(name) for name in read_split(data, "val").classes.names)
    reader = checked(text_of(subject(names), data))
    assert len(names) == 91
    matrix = [row for row in reader.rows if row and row[0] == "background"]
    assert len(matrix[0]) == 1 + MAX_IN_MATRIX + 1 + 1
    assert all(any(row and row[0] == name for row in reader.rows) for name in names)


def test_one_class_and_classes_that_the_model_does_not_know(tiny_data: Path) -> None:
    reader = checked(text_of(subject(("star",)), tiny_data))
    assert any(row and row[0] == "circle not in the model" for row in reader.rows)


def test_pictures_show_what_the_plain_model_saw(tiny_data: Path) -> None:
    part = read_split(tiny_data, "val")
    part = replace(part, images=part.images[:1])
    detector = subject(tuple(str(name) for name in part.classes.names))
    detections = collect_detections(detector, part, progress=False)
    plain, views = (
        report_text(one, detections, part, None, model="m", data="d")
        for one in (detector, augmented(detector))
    )
    assert plain.count("<img") > 1
    plain, views = (re.sub(r"\d\d:\d\d UTC", "", text) for text in (plain, views))
    assert views == plain


def test_no_detection_is_right(tiny_data: Path) -> None:
    part = read_split(tiny_data, "val")
    detector = subject(tuple(str(name) for name in part.classes.names))
    for detections in ([], _far_off(part)):
        text = report_text(detector, detections, part, None, model="m", data="d")
        checked(text)
        assert "does not find any object yet" in text
        assert "threshold to use" not in text


def _far_off(part: Any) -> list[dict[str, Any]]:
    first = part.images[0]
    category_id = part.classes.category_ids[0]
    box = [0.0, 0.0, 1.0, 1.0]
    return [{"image_id": first.image_id, "category_id": category_id, "bbox": box, "score": 0.001}]


def test_everything_is_right(tiny_data: Path) -> None:
    part = read_split(tiny_data, "val")
    detector = subject(tuple(str(name) for name in part.classes.names))
    annotations = ground_truth_of(part)["annotations"]
    detections = [
        {key: truth[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9}
        for truth in annotations
    ]
    text = report_text(detector, detections, part, None, model="m", data="d")
    checked(text)
    assert (
        "the threshold 0.45, the model finds 100 of 100 objects, and 100 of 100 detections are right" in text
    )
    assert "None of the" in text


def test_the_numbers_of_some_detections(tiny_data: Path) -> None:
    """Some right, some shifted, some of another class, some twice: every table against the evaluator."""
    part = read_split(tiny_data, "val")
    random = np.random.default_rng(0)
    detections = []
    for truth in ground_truth_of(part)["annotations"] * 2:
        shift = random.normal(0, 3, 4)
        category_id = (
            random.choice(part.classes.category_ids) if random.random() < 0.2 else truth["category_id"]
        )
        box = [max(0.5, float(value)) for value in np.array(truth["bbox"]) + shift]
        row = {"image_id": truth["image_id"], "category_id": int(category_id), "bbox": box}
        detections.append({**row, "score": float(random.random())})
    detections.sort(key=lambda row: (row["image_id"], -row["score"]))
    wanted = coco_average_precision(ground_truth_of(part), detections)
    assert 0.1 < wanted["AP50"] < 0.9
    detector = subject(tuple(str(name) for name in part.classes.names))
    text = report_text(detector, detections, part, None, model="m", data="d")
    reader = checked(text)
    for name, numbers in wanted["per_class"].items():
        (cells,) = [row for row in reader.rows if row and row[0] == name and len(row) == 14]
        assert cells[3:5] == [percent(numbers["AP"]), percent(numbers["AP50"])]
    (all_classes,) = [row for row in reader.rows if row and row[0] == "all"]
    assert all_classes[3:6] == [percent(wanted[name]) for name in ("AP", "AP50", "AP75")]
    assert f"area {percent(wanted['AP50'])} (AP50)" in text
    areas = [truth["area"] for truth in ground_truth_of(part)["annotations"]]
    (small,) = [row for row in reader.rows if row and row[0] == "small"]
    assert small[2] == str(sum(area < 32**2 for area in areas))
    assert small[4:] == [percent(wanted["APs"]), percent(wanted["ARs"])]
    assert f"area {percent(wanted['AP75'])} (AP75)" in text

    accuracy = measure(part, detections)
    best = accuracy.thresholds.best
    assert best is not None
    (row,) = [row for row in reader.rows if row and row[0].endswith("best F1")]
    found = accuracy.cut.mask(accuracy.detections)
    assert row[4] == str(int(found.sum()))
    hits = int((found & accuracy.loose.right).sum())
    assert row[1:3] == [percent(hits / found.sum()), percent(hits / accuracy.num_objects)]
    matrix = reader.rows[
        next(i for i, row in enumerate(reader.rows) if row and row[0].startswith("annotated")) :
    ]
    diagonal = [int(matrix[1 + n][1 + n].replace("·", "0")) for n in range(len(part.classes))]
    assert sum(diagonal) == hits
    # Of the whole threshold: counts of mistakes and of confusions agree.
    assert len(mistakes(accuracy)) == int(found.sum()) - hits


def test_no_objects(tiny_data: Path, tmp_path: Path) -> None:
    data = changed_data(tiny_data, tmp_path / "data", lambda content: content["annotations"].clear())
    names = tuple(str(name) for name in read_split(data, "val").classes.names)
    text = text_of(subject(names), data)
    checked(text)
    assert "has no annotated objects" in text


@pytest.mark.parametrize("kind", ["detr", "two-stage"])
def test_other_models(tiny_data: Path, kind: str) -> None:
    part = read_split(tiny_data, "val")
    config = as_detr(tiny_config()) if kind == "detr" else tiny_config(queries="proposals")
    table = ClassTable.from_names(tuple(str(name) for name in part.classes.names))
    checkpoint = new_checkpoint(config.model, table, config.data, config.recipe, None)
    randomise(checkpoint.model)
    reader = checked(text_of(Detector.of(checkpoint, "cpu"), tiny_data))
    assert any(tag == "img" for tag, _ in reader.elements)


def test_more_objects_than_queries_is_reported(tiny_data: Path) -> None:
    part = read_split(tiny_data, "val")
    names = tuple(str(name) for name in part.classes.names)
    assert "More objects than queries" in text_of(subject(names, num_queries=2), tiny_data)
    assert "More objects than queries" not in text_of(subject(names), tiny_data)


# ---------------------------------------------------------------- parts


def test_kinds_of_mistakes(tiny_data: Path) -> None:
    part = read_split(tiny_data, "val")
    record = next(image for image in part.images if len(image) >= 1)
    part = replace(part, images=(record,))
    x0, y0, x1, y1 = record.boxes_xyxy[0]
    width, height = x1 - x0, y1 - y0
    ids = part.classes.category_ids
    own = ids[record.labels[0]]
    other = next(each for label, each in enumerate(ids) if label not in set(record.labels.tolist()))

    def row(bbox: tuple[float, ...], category_id: int, score: float) -> dict[str, Any]:
        return {"image_id": record.image_id, "category_id": category_id, "bbox": list(bbox), "score": score}

    detections = [
        row((x0, y0, width, height), own, 0.9),
        row((x0, y0, width, height * 0.9), own, 0.8),
        row((x0, y0, width * 0.3, height), own, 0.7),
        row((x0, y0, width, height), other, 0.6),
        row((x0, y0, width * 0.3, height), other, 0.5),
    ]
    accuracy = measure(part, detections, cut=Cut.uniform(0.2, len(ids), "made"))
    found = mistakes(accuracy)
    assert list(found.values()) == [
        Mistake.DUPLICATE,
        Mistake.BADLY_PLACED,
        Mistake.WRONG_CLASS,
        Mistake.BACKGROUND,
    ]


def test_folding_loses_no_count() -> None:
    random = np.random.default_rng(0)
    names: list[str | None] = [f"c{n}" for n in range(30)]
    names[3] = None
    counts = random.integers(0, 9, (31, 31))
    counts[3] = counts[:, 3] = 0  # no class uses this number
    folded, shown, others = fold(counts, names)
    assert folded.sum() == counts.sum()
    assert len(shown) == MAX_IN_MATRIX + 1
    assert (shown[-1], others) == ("other classes", 9)
    assert folded[-1].sum() == counts[-1].sum()
    small, shown, others = fold(counts[:6, :6], names[:5])
    assert (small.shape, shown, others) == ((5, 5), ["c0", "c1", "c2", "c4"], 0)


def test_a_choice_of_pictures_is_varied() -> None:
    items = [("a", 1), ("a", 1), ("a", 2), ("b", 1), ("c", 3)]
    chosen = varied(items, lambda item: item[0], lambda item: item[1], 4)
    assert chosen == [("a", 1), ("b", 1), ("c", 3), ("a", 2)]
    assert len(varied(items, lambda item: item[0], lambda item: item[1], 9)) == 5
    assert spread(range(10), 3) == [1, 5, 8]
    assert spread(range(2), 3) == [0, 1]

"""The command: what it writes and what it refuses. And the proof that a trained model looks at objects."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deformable_detr.boxes import iou
from deformable_detr.cli import main
from deformable_detr.cli.demo import demo_config
from deformable_detr.data.drawn import generate
from deformable_detr.data.formats import read_split
from deformable_detr.detections import ClassTable
from deformable_detr.explain.missed import missed_objects
from deformable_detr.inference.detector import Detector
from deformable_detr.inference.loading import new_checkpoint
from deformable_detr.training.run import train
from tests.support.tiny import tiny_config

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    config = tiny_config()
    checkpoint = new_checkpoint(config.model, ClassTable.from_names(SHAPES), config.data, config.recipe, None)
    return str(Detector.of(checkpoint, "cpu").save(tmp_path_factory.mktemp("model") / "model"))


@pytest.fixture(scope="module")
def picture(tiny_data: Path) -> str:
    return str(sorted((tiny_data / "val").iterdir())[0])


def explain(*arguments: str) -> int:
    return main(["explain", *arguments])


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert explain(*arguments) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_a_picture_a_page_and_gradients(
    model: str, picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ("--threshold", "0.005", "--most", "1")
    assert explain(model, picture, "--output", str(tmp_path / "a.png"), "--at", "3,4.5", *few) == 0
    assert "detections explained: " in capsys.readouterr().out
    with Image.open(tmp_path / "a.png") as written:
        assert written.format == "PNG"
    assert explain(model, picture, "--output", str(tmp_path / "new" / "a.html"), "--threshold", "0") == 0
    assert (tmp_path / "new" / "a.html").read_text().startswith("<!DOCTYPE html>")
    assert explain(model, picture, "--gradient", "--output", str(tmp_path / "g.png"), *few) == 0
    with Image.open(tmp_path / "g.png") as written:
        assert written.width > 3 * written.height
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "g.png", "new"]  # nothing partial


def test_missed_objects_of_a_split_and_of_one_image(
    model: str, tiny_data: Path, picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "missed"
    assert explain(model, "--missed", str(tiny_data), "--output", str(out), "--most", "1") == 0
    said = capsys.readouterr().out
    assert "objects missed at threshold 0.5" in said
    report = json.loads((out / "missed.json").read_text())
    assert report["objects"] == sum(report["stages"].values()) == len(report["missed"])
    stages = {row["stage"] for row in report["missed"]}
    names = {path.name for path in out.iterdir()}
    assert names == {"missed.json"} | {f"{stage.replace(' ', '_')}_1.png" for stage in stages}

    one = tmp_path / "one"
    name = Path(picture).name
    assert explain(model, name, "--missed", str(tiny_data), "--output", str(one), "--most", "1") == 0
    rows = json.loads((one / "missed.json").read_text())["missed"]
    assert {row["file_name"] for row in rows} == {name}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("MODEL", "IMAGE is missing"),
        ("MODEL PICTURE --output a.gif", "a.gif must end in one of .png"),
        ("MODEL PICTURE --output .", "is a folder"),
        ("MODEL PICTURE --gradient --output OUT/a.html", "must end in one of .png"),
        ("MODEL PICTURE --gradient --output OUT/a.png --threshold 1", "nothing is detected above 1,"),
        ("MODEL PICTURE --gradient --at 1,2", "--gradient and --at do not go together"),
        ("MODEL --missed DATA --gradient", "--missed and --gradient do not go together"),
        ("MODEL PICTURE --at 1", "--at must be X,Y in pixels, such as 120,80, not 1"),
        ("MODEL PICTURE --at 1,999 --output OUT/a.png", "the point 1,999 is outside the picture"),
        ("MODEL PICTURE --layer 3 --output OUT/a.png", "--layer must be from 1 to 2"),
        (
            "MODEL PICTURE --at 5,5 --layer 2 --output OUT/a.png",
            "--layer must be from 1 to 1, the model's encoder",
        ),
        ("MODEL PICTURE --layer 1 --output OUT/a.html", "--layer applies to pictures only"),
        ("MODEL PICTURE --most 0 --output OUT/a.png", "--most must be at least 1, not 0"),
        ("MODEL PICTURE --threshold 2 --output OUT/a.png", "threshold must be between 0 and 1"),
        ("MODEL nowhere.jpg --output OUT/a.png", "nowhere.jpg"),
        ("nowhere PICTURE --output OUT/a.png", "there is no model nowhere"),
        ("MODEL nowhere.jpg --missed DATA --output OUT", "has no image nowhere.jpg"),
        ("MODEL --missed DATA --split none --output OUT", "none"),
        ("MODEL --missed DATA --threshold 2 --output OUT", "threshold must be between 0 and 1"),
    ],
)
def test_wrong_input_is_reported_in_one_sentence(
    model: str,
    picture: str,
    tiny_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    words: str,
) -> None:
    places = {"MODEL": model, "PICTURE": picture, "DATA": str(tiny_data)}
    line = [places.get(word, word.replace("OUT", str(tmp_path))) for word in arguments.split()]
    assert words in refused(capsys, *line)


# ---------------------------------------------------------------- does a trained model look at the objects?


def attention_over_chance(detector: Detector, data: Path) -> float:
    """How many times more of its weight the best placed query has inside an object's box, in the last layer,
    than it would have by looking at random: the mean share inside over the mean share of the area."""
    inside, area = [], []
    for judged in missed_objects(detector, read_split(data, "val"), detector.selection(0.3)):
        height, width = judged.record.size
        for box in judged.record.boxes_xyxy[judged.numbers]:
            overlap = iou(torch.tensor(box)[None], torch.tensor(judged.queries.boxes_xyxy[:, -1]).double())
            best = judged.queries.take(np.array([int(overlap.argmax())]))
            inside.append(float(best.attention.share_inside(box)[0, -1]))
            area.append(float((box[2] - box[0]) * (box[3] - box[1]) / (height * width)))
    return float(np.mean(inside) / np.mean(area))


FACTOR = 5.0


@pytest.mark.slow
def test_attention_is_inside_the_objects_five_times_more_than_by_chance(tmp_path: Path) -> None:
    data = generate(tmp_path / "data", train=200, val=30, image_size=(120, 160), seed=0)
    config = demo_config()
    config = replace(config, train=replace(config.train, epochs=4, evaluate_every=4))
    detector = train(data, config, tmp_path / "run")
    factor = attention_over_chance(detector, data)
    print(f"attention inside the objects: {factor:.1f} times chance")
    assert factor > FACTOR

"""Figures 5 and 6: what the commands write, and that their numbers are those of the arrays."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from deformable_detr.config import RunConfig
from deformable_detr.data.scenes import CLASS_NAMES
from deformable_detr.detections import ClassTable, Detections
from deformable_detr.explain.gradient import TERMS, Gradients
from deformable_detr.inference.detector import Detector
from deformable_detr.inference.loading import new_checkpoint
from experiments.paper.__main__ import main
from experiments.paper.figure5 import REGIONS, regions_of
from experiments.paper.figure6 import explain_centres, looks_of
from tests.support.small_models import randomise
from tests.support.tiny import as_detr, tiny_config


def tiny_detector(config: RunConfig) -> Detector:
    classes = ClassTable.from_names(CLASS_NAMES)
    checkpoint = new_checkpoint(config.model, classes, config.data, "deformable_detr_lite", None)
    randomise(checkpoint.model)
    return Detector.of(checkpoint, "cpu")


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(tiny_detector(tiny_config()).save(tmp_path / "model"))


def gradients_of(norms: np.ndarray, box: tuple[float, ...]) -> Gradients:
    found = Detections(
        scores=np.array([0.9], np.float32),
        labels=np.array([0]),
        category_ids=np.array([1]),
        names=("a",),
        boxes_xyxy=np.array([box], np.float32),
        image_size=(100, 200),
    )
    return Gradients(norms[None], found)


def test_the_regions_of_a_gradient() -> None:
    norms = np.zeros((5, 50, 100), np.float32)  # the model sees half of 100 x 200
    norms[0, :, 20] = 1  # x: the column at 40 to 42 pixels, where the box begins
    norms[1, 40, :] = 1  # y: the row at 80 pixels, where it ends
    norms[2, 25, 40] = 1  # width: its middle
    norms[3, 2, 2] = 1  # height: a corner of the picture
    norms[4] = 1  # the score: everywhere alike
    regions = regions_of(gradients_of(norms, (40, 20, 120, 80)), 0)
    assert list(regions) == list(TERMS)
    strongest = [max(REGIONS, key=lambda name: regions[term][name]) for term in TERMS[:4]]
    assert strongest == ["left_right", "top_bottom", "inside", "outside"]
    assert regions["score"] == dict.fromkeys(REGIONS, 1.0)
    assert regions["width"]["left_right"] == regions["width"]["outside"] == 0.0


def test_figure5_writes_pictures_and_numbers(
    model: str, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = sorted((tiny_data / "val").iterdir())[0]
    command = ["figure5", model, str(image), "--output", str(tmp_path / "o"), "--device", "cpu"]
    assert main([*command, "--threshold", "0.05", "--most", "2"]) == 0
    assert {path.name for path in (tmp_path / "o").iterdir()} == {
        "figure5.json",
        "figure5.png",
        "figure5.svg",
    }
    content = json.loads((tmp_path / "o" / "figure5.json").read_text())
    (entry,) = content["pictures"]
    assert entry["image"] == str(image)
    assert len(entry["detections"]) == content["mean"]["detections"] == 2
    of_score = [each["mean_gradient"]["score"]["inside"] for each in entry["detections"]]
    assert content["mean"]["score"]["inside"] == pytest.approx(np.mean(of_score), abs=1e-3)
    capsys.readouterr()
    assert main([*command, "--threshold", "1.0"]) == 2
    assert "lower --threshold" in capsys.readouterr().err
    assert main([*command, "--most", "0"]) == 2


def test_figure6_of_several_pictures(model: str, tiny_data: Path, tmp_path: Path) -> None:
    images = [str(path) for path in sorted((tiny_data / "val").iterdir())[:2]]
    command = ["figure6", model, *images, "--output", str(tmp_path / "o"), "--device", "cpu"]
    assert main([*command, "--threshold", "0.05", "--most", "1"]) == 0
    names = {path.name for path in (tmp_path / "o").iterdir()}
    assert names == {"figure6.json"} | {f"figure6-{n}.{kind}" for n in (1, 2) for kind in ("png", "svg")}
    content = json.loads((tmp_path / "o" / "figure6.json").read_text())
    assert [entry["image"] for entry in content["pictures"]] == images
    (found,) = content["pictures"][0]["detections"]
    layers = tiny_config().model
    assert len(found["decoder_weight_inside"]) == layers.decoder_layers
    assert len(found["encoder_weight_inside"]) == layers.encoder_layers
    assert main([*command, "--threshold", "1.0"]) == 2


@pytest.mark.parametrize("config", [tiny_config(), as_detr(tiny_config())], ids=["deformable", "dense"])
def test_the_weight_inside_is_that_of_the_attention(config: RunConfig) -> None:
    picture = np.random.default_rng(3).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    explanation = explain_centres(tiny_detector(config), picture, 0.05, most=2)
    looks = looks_of(explanation)
    assert len(looks) == len(explanation) == 2
    for row, each in enumerate(looks):
        box = explanation.detections.boxes_xyxy[row]
        assert each.box_xyxy == pytest.approx(box)
        x0, y0, x1, y1 = np.clip(box, 0, [80, 64, 80, 64])
        assert each.area == pytest.approx((x1 - x0) * (y1 - y0) / (80 * 64), rel=1e-4)
        share = explanation.queries.attention.share_inside(explanation.detections.boxes_xyxy)[row]
        assert each.decoder == pytest.approx(share)
        assert all(0 <= share <= 1 + 1e-6 for share in (*each.decoder, *each.encoder))
    assert explanation.encoder is not None
    own = explanation.encoder.attention.take(np.arange(explanation.encoder.tokens.shape[1]))
    first = own.share_inside(explanation.detections.boxes_xyxy[0]).mean(0)
    assert looks[0].encoder == pytest.approx(first, rel=1e-5)

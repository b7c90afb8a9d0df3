"""The whole way on real COCO pictures, with the paper's model: one epoch, evaluation, prediction.

Pictures are a quarter of the recipe's size, so that an epoch takes minutes and not an hour.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deformable_detr.cli import main
from tests.support.paths import data_set

pytestmark = pytest.mark.slow


def test_an_epoch_of_the_papers_model_on_tiny_coco(tmp_path: Path) -> None:
    tiny_coco = data_set("tiny_coco")
    run, metrics, out = tmp_path / "run", tmp_path / "metrics.json", tmp_path / "out"
    train = ["train", str(tiny_coco), "--recipe", "deformable_detr_r50", "--output", str(run)]
    train += ["--train.epochs=1", "--train.backbone_weights=null", "--device=cpu"]
    train += ["--data.image_size=200", "--data.max_size=333", "--data.train_sizes=[120,160,200]"]
    train += ["--data.crop_sizes=[150]", "--data.crop_min=96", "--data.crop_max=150"]
    assert main(train) == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["kind"] == "evaluation"
    assert rows[-1]["step"] == 25  # 50 pictures, two an update

    assert main(["evaluate", str(run), str(tiny_coco), "--output", str(metrics), "--device=cpu"]) == 0
    found = json.loads(metrics.read_text())
    assert found["images"] == 50
    assert found["AP"] == pytest.approx(rows[-1]["AP"], abs=1e-6)

    pictures = str(tiny_coco / "val2017" / "0000003*.jpg")
    assert main(["predict", str(run), pictures, "--output", str(out), "--threshold=0", "--device=cpu"]) == 0
    predictions = json.loads((out / "predictions.json").read_text())
    # COCO's own ids and names, sparse as they are.
    names = {row["category_id"]: row["category_name"] for row in predictions}
    content = json.loads((tiny_coco / "annotations" / "instances_val2017.json").read_text())
    assert names.items() <= {row["id"]: row["name"] for row in content["categories"]}.items()
    assert len(list(out.glob("*.jpg"))) == len(list((tiny_coco / "val2017").glob("0000003*.jpg")))

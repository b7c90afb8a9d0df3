"""`predict` with an exported file starts without PyTorch, and finds what PyTorch would."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deformable_detr.data.preprocessing import model_input
from deformable_detr.inference.detector import Detector
from deformable_detr.inference.exported import load
from deformable_detr.inference.postprocess import postprocess
from deformable_detr.structures import ImageBatch
from tests.support.exported_files import write_toy

for name in ("onnx", "onnxruntime", "openvino"):
    pytest.importorskip(name)

# Importing one of these is an error. (sys.modules at the end would not show a module that was removed again.)
PROGRAM = """
import sys
for name in ("torch", "torchvision", "scipy", "timm"):
    sys.modules[name] = None
from deformable_detr.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_predict_imports_no_torch(suffix: str, tmp_path: Path) -> None:
    file = write_toy(tmp_path / f"toy{suffix}")
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    arguments = ["predict", str(file), str(tmp_path / "a.png"), "--output", str(tmp_path / "out")]
    subprocess.run([sys.executable, "-c", PROGRAM, *arguments, "--threshold", "0"], check=True)
    rows = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert (tmp_path / "out" / "a.png").is_file()

    opened = load(file)
    picture = Image.open(tmp_path / "a.png").convert("RGB")
    pixels = torch.from_numpy(model_input(picture, opened.description.data))
    found = opened.backend(ImageBatch.from_images([pixels]))
    detector = Detector(opened, opened.backend)
    (wanted,) = postprocess(
        found.logits, found.boxes_cxcywh, detector.classification, detector.classes, [(50, 70)]
    )
    wanted = wanted.clipped()
    assert len(rows) == len(wanted) > 0
    np.testing.assert_allclose([row["score"] for row in rows], wanted.scores, atol=1e-5)
    assert [row["category_id"] for row in rows] == wanted.category_ids.tolist()
    boxes = [(x, y, x + w, y + h) for x, y, w, h in (row["bbox"] for row in rows)]
    np.testing.assert_allclose(boxes, wanted.boxes_xyxy, atol=1e-3)

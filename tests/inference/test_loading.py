"""inference/loading.py: models of the recipes start without the libraries that take long to import."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deformable_detr.checkpoint import Checkpoint, authors, class_table_for, native, transformers_format
from tests.support.small_models import random_checkpoint, small_config

# Importing one of these is an error. (sys.modules at the end would not show a module that was removed again.)
PROGRAM = """
import sys
for name in ("torchvision", "timm", "torch._dynamo", "sympy"):
    sys.modules[name] = None
from deformable_detr.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("recipe", "save", "file"),
    [
        ("deformable_detr_r50", native.save, "model"),
        ("deformable_detr_r50", authors.save, "model.pth"),
        ("deformable_detr_r50", transformers_format.save, "model"),
        ("deformable_detr_lite", native.save, "model"),
    ],
)
def test_predict_imports_neither_torchvision_nor_the_compiler(
    recipe: str, save: Callable[[Path, Checkpoint], None], file: str, tmp_path: Path
) -> None:
    config = small_config(recipe, num_classes=91)
    save(tmp_path / file, random_checkpoint(config, class_table_for(91)))
    Image.fromarray(np.zeros((50, 70, 3), np.uint8)).save(tmp_path / "a.png")
    arguments = [tmp_path / file, tmp_path / "a.png", "--output", tmp_path / "out", "--device", "cpu"]
    subprocess.run([sys.executable, "-c", PROGRAM, "predict", *map(str, arguments)], check=True)
    assert (tmp_path / "out" / "a.png").is_file()

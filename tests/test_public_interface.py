"""The names that users hold on to (docs/api.md), and what importing them costs."""

from __future__ import annotations

import inspect
import subprocess
import sys
from types import ModuleType

import pytest

import deformable_detr as dd

NAMES = ("Detections", "Detector", "UserError", "create", "evaluate", "export", "load", "ops", "train")
HEAVY = ("torch", "torchvision", "numpy", "PIL", "supervision", "transformers", "timm", "accelerate", "rich")


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_public_names() -> None:
    assert tuple(dd.__all__) == NAMES
    assert set(NAMES) <= set(dir(dd))
    for name in NAMES:
        assert isinstance(getattr(dd, name), ModuleType) == (name == "ops")
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = dd.nonsense


def test_functions_stay_functions_whatever_is_imported_before() -> None:
    modules = (
        "training",
        "evaluation",
        "inference.detector",
        "structures",
        "cli",
        "prediction",
        "ops",
        "errors",
        "cli.demo",
        "exporter",
    )
    checks = "all(callable(getattr(dd, n)) for n in ('train', 'evaluate', 'export', 'load', 'create'))"
    code = (
        "import importlib, deformable_detr as dd\n"
        f"for order in ({modules!r}, {modules[::-1]!r}):\n"
        "    for name in order:\n"
        "        importlib.import_module('deformable_detr.' + name)\n"
        f"        assert {checks}, name\n"
        "from deformable_detr import *\n"
        "print(train.__module__, evaluate.__module__, ops.__name__)"
    )
    assert run(code) == "deformable_detr.training.run deformable_detr.evaluation.run deformable_detr.ops"


@pytest.mark.parametrize(
    "code",
    [
        "import deformable_detr; deformable_detr.__version__; dir(deformable_detr)",
        "from deformable_detr.cli import main; main(['--help'])",
        "from deformable_detr.cli import main; main(['--version'])",
        "from deformable_detr.cli import main\ntry: main(['predict', '--help'])\nexcept SystemExit: pass",
    ],
    ids=["import", "help", "version", "predict --help"],
)
def test_nothing_heavy_is_imported_before_it_is_needed(code: str) -> None:
    found = run(f"import sys\n{code}\nprint([name for name in {HEAVY!r} if name in sys.modules])")
    assert found.splitlines()[-1] == "[]"


def parameters(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)  # type: ignore[arg-type]


def test_signatures_as_documented() -> None:
    assert parameters(dd.load)[:3] == ["model", "device", "dtype"]
    assert parameters(dd.create)[:4] == ["recipe", "num_classes", "classes", "backbone_weights"]
    assert inspect.signature(dd.create).parameters["num_classes"].default == 91
    assert parameters(dd.train)[:3] == ["data", "recipe", "output"]
    assert parameters(dd.evaluate)[:2] == ["model", "data"]
    assert parameters(dd.Detector.predict)[1:3] == ["images", "threshold"]
    operator = ["value", "spatial_shapes", "sampling_locations", "attention_weights"]
    assert parameters(dd.ops.ms_deform_attn)[:4] == operator
    fused = ["value", "spatial_shapes", "reference", "sampling_offsets", "attention_logits"]
    assert parameters(dd.ops.fused_ms_deform_attn)[:5] == fused
    attributes = {"boxes_xyxy", "scores", "labels", "category_ids", "names", "image_size", "image"}
    assert set(dd.Detections.__dataclass_fields__) == attributes | {"track_ids"}


def test_user_errors_can_be_caught_as_value_errors() -> None:
    assert issubclass(dd.UserError, ValueError)

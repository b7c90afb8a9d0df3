"""Export from a checkpoint to files with certificates, and refusals that leave nothing. The model is as small
as it can be: most of the time goes to tracing. Whole families are in test_engines.py (slow)."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import deformable_detr as dd
from deformable_detr import ops
from deformable_detr.cli import main
from deformable_detr.data.drawn import generate
from deformable_detr.detections import ClassTable
from deformable_detr.errors import ExportRefusedError, UserError
from deformable_detr.exporter import exportation
from deformable_detr.exporter.formats import OnnxDraft, TorchDraft
from deformable_detr.inference.detector import Detector
from deformable_detr.inference.exported import load
from deformable_detr.inference.exported.metadata import CERTIFICATE, Metadata
from deformable_detr.inference.tta import augmented
from deformable_detr.structures import ImageBatch
from tests.support.matching import assert_same_detections
from tests.support.small_models import random_checkpoint
from tests.support.tiny import tiny_config

for name in ("onnx", "onnxscript", "onnxruntime", "openvino"):
    pytest.importorskip(name)

CLASSES = ClassTable(("circle", "square", "triangle", "star", "ring", "cross"), (1, 2, 3, 4, 5, 6))


@pytest.fixture(scope="module")
def detector() -> Detector:
    config = tiny_config(num_classes=6, num_levels=1, decoder_layers=1)
    checkpoint = random_checkpoint(config.model, CLASSES)
    data = replace(config.data, size_multiple=32)
    return Detector.of(replace(checkpoint, data=data, recipe=config.recipe), "cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("d") / "data", train=2, val=3, image_size=(64, 80), seed=1)


@pytest.fixture(scope="module")
def onnx_draft(detector: Detector) -> OnnxDraft:
    return OnnxDraft.from_model(detector.model, "grid_sample")


@pytest.fixture
def traced_once(onnx_draft: OnnxDraft, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracing takes ten seconds: `export` gets a copy of the one graph."""
    import onnx

    def copy(*_: Any) -> OnnxDraft:
        proto = onnx.ModelProto()
        proto.CopyFrom(onnx_draft.proto)
        return OnnxDraft(proto)

    monkeypatch.setattr(OnnxDraft, "from_model", copy)


def certificate_in(target: Path) -> dict[str, Any]:
    if target.suffix != ".pt2":
        inside = load(target).metadata.certificate
        assert inside is not None
        return inside
    with zipfile.ZipFile(target) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith(f"extra/{CERTIFICATE}"))
        return dict(json.loads(archive.read(name)))


def check_certificate(made: exportation.Export, target: Path) -> None:
    assert made.certificate_file == target.with_name(f"{target.name}.certificate.json")
    content = json.loads(made.certificate_file.read_text())
    assert content == json.loads(json.dumps(made.certificate))
    for file in content["files"]:
        written = (target.parent / file["name"]).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(written), hashlib.sha256(written).hexdigest())
    assert {target.parent / file["name"] for file in content["files"]} == set(made.files)
    assert certificate_in(target) == {key: value for key, value in content.items() if key != "files"}
    assert str(target.parent) not in json.dumps(content)  # tells nothing of this machine
    for name in ("box", "score"):
        assert 0 <= content["drift"][name] <= content["bounds"][name]
    assert len(content["images"]) + 1 == len(content["batches"])


def check_same_detections(detector: Detector, target: Path, sizes: tuple[tuple[int, int], ...]) -> None:
    exported = dd.load(target)
    pictures = [
        np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8) for i, size in enumerate(sizes)
    ]
    wanted = detector.predict(pictures, threshold=0.0)
    found = exported.predict(pictures, threshold=0.0)
    for one, other in zip(found, wanted, strict=True):
        assert_same_detections(one, other, score=1e-4, box=0.05)


SIZES = ((120, 160), (160, 120), (97, 61), (64, 64), (500, 333))


def test_onnx_with_average_precision(
    detector: Detector, data: Path, traced_once: None, tmp_path: Path
) -> None:
    target = tmp_path / "new" / "model.onnx"
    made = dd.export(detector, target, to="onnx", data=data, num_images=2)
    check_certificate(made, target)
    assert [image["name"] for image in made.certificate["images"]] == ["000001.jpg", "000003.jpg"]
    ap = made.certificate["drift"]["ap"]
    assert ap["exported"] == pytest.approx(ap["pytorch"], abs=1e-3)
    assert "AP" in made.summary()
    check_same_detections(detector, target, SIZES)
    assert sorted(path.name for path in target.parent.iterdir()) == [
        "model.onnx",
        "model.onnx.certificate.json",
    ]


def test_the_plain_model_is_exported(
    detector: Detector, data: Path, traced_once: None, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"to": "onnx", "data": data, "num_images": 1}
    plain = dd.export(detector, tmp_path / "plain.onnx", **options).certificate
    views = dd.export(augmented(detector), tmp_path / "views.onnx", **options).certificate
    assert (views["drift"], views["images"]) == (plain["drift"], plain["images"])


def test_the_onnx_file_for_other_programs(detector: Detector, onnx_draft: OnnxDraft) -> None:
    graph = onnx_draft.proto.graph
    assert [each.name for each in graph.input] == ["pixels", "mask"]
    assert [each.name for each in graph.output] == ["logits", "boxes_cxcywh"]
    axes = [each.dim_param or each.dim_value for each in graph.input[0].type.tensor_type.shape.dim]
    assert axes == ["batch", 3, "height", "width"]
    assert {node.domain for node in graph.node} <= {"", "ai.onnx"}
    assert "GridSample" in {node.op_type for node in graph.node}
    assert b"/deformable_detr/" not in onnx_draft.proto.SerializeToString()  # no stack traces


def test_an_operator_that_onnx_lacks_is_decomposed(detector: Detector, tmp_path: Path) -> None:
    class Shifted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.clone().add_(0.25)  # in place, which ONNX does not have

    checkpoint = random_checkpoint(tiny_config(num_classes=6, num_levels=1, decoder_layers=1).model, CLASSES)
    checkpoint.model.decoder.norm = Shifted()
    draft = OnnxDraft.from_model(checkpoint.model, "gather")
    draft.save(tmp_path / "a.onnx", Metadata(detector.checkpoint.description, None).to_texts())
    images = ImageBatch.from_images([torch.ones(3, 61, 80)])
    predicted = load(tmp_path / "a.onnx").backend(images)
    with torch.no_grad():
        expected = checkpoint.model.eval()(images).predictions[-1]
    torch.testing.assert_close(predicted.logits, expected.logits, atol=1e-4, rtol=0)


def test_the_snippet_of_the_docs_needs_nothing_of_ours(
    detector: Detector, traced_once: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Path(__file__).parents[2] / "docs" / "export.md"
    code = page.read_text().split("## Without this package")[1].split("```python")[1].split("```")[0]
    assert "deformable_detr " not in code
    assert "import deformable_detr" not in code
    dd.export(detector, tmp_path / "model.onnx", to="onnx", num_images=1)
    picture = Image.effect_noise((80, 64), 90).convert("RGB")
    picture.save(tmp_path / "a.jpg")
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(code, found)
    wanted = detector.predict(tmp_path / "a.jpg", threshold=0.0)
    cx, cy, w, h = (found["boxes"][0] * [80, 64, 80, 64]).T
    corners = np.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], axis=-1)
    corners = corners.clip(0, [80, 64, 80, 64])  # as `predict` does
    Q, num_names = found["scores"].shape
    rows = SimpleNamespace(
        boxes_xyxy=corners.repeat(num_names, axis=0),
        scores=found["scores"].flatten(),
        names=[*found["names"]] * Q,
    )
    assert_same_detections(rows, wanted, score=1e-4, box=0.02)


def test_openvino(detector: Detector, traced_once: None, tmp_path: Path) -> None:
    target = tmp_path / "model.xml"
    check_certificate(dd.export(detector, target, to="openvino"), target)
    check_same_detections(detector, target, SIZES)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "model.bin",
        "model.xml",
        "model.xml.certificate.json",
    ]


def test_torch_with_our_operator(detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_program = Mock(wraps=torch.export.load)
    monkeypatch.setattr(torch.export, "load", load_program)
    if not ops.native_available():
        pytest.skip("the native operator is not built here")
    target = tmp_path / "model.pt2"
    check_certificate(dd.export(detector, target, to="torch"), target)
    assert load_program.call_count == 1  # this takes half a minute if the model is large
    program = torch.export.load(target)
    assert "deformable_detr.fused_ms_deform_attn.default" in {str(n.target) for n in program.graph.nodes}
    module = program.module(check_guards=False)
    for size in SIZES:
        images = ImageBatch.from_images([torch.randn(3, *size, generator=torch.Generator().manual_seed(0))])
        with torch.inference_mode():
            logits, boxes_cxcywh = module(images.pixels, images.mask)
            wanted = detector.model(images).predictions[-1]
        torch.testing.assert_close(logits, wanted.logits, atol=1e-4, rtol=0)
        torch.testing.assert_close(boxes_cxcywh, wanted.boxes_cxcywh, atol=1e-4, rtol=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt2", "model.pt2.certificate.json"]


def test_a_program_is_compared_from_memory(detector: Detector, tmp_path: Path) -> None:
    """The file that was written may be another's by then, and reading a .pt2 can run code."""
    draft = TorchDraft(detector.model, "gather")
    file = tmp_path / "model.pt2"
    draft.save(file, Metadata(detector.checkpoint.description, {"drift": 0.5}).to_texts())
    written = file.read_bytes()
    file.write_bytes(b"hostile")
    opened = draft.open(file)
    assert opened.metadata.certificate == {"drift": 0.5}
    again = tmp_path / "again.pt2"
    again.write_bytes(written)
    torch.export.load(again)


def test_int8_from_calibration_pictures(
    detector: Detector, data: Path, traced_once: None, tmp_path: Path
) -> None:
    target = tmp_path / "int8.onnx"
    options: dict[str, Any] = {"to": "onnx", "precision": "int8", "calibration": data / "train"}
    made = dd.export(detector, target, max_box_drift=1.0, max_score_drift=1.0, **options)
    check_certificate(made, target)
    assert made.certificate["drift"]["logit"] > 1e-4  # it is not float32 under another name
    import onnx

    assert "QuantizeLinear" in {node.op_type for node in onnx.load(target).graph.node}
    with pytest.raises(ExportRefusedError, match=r"boxes drifted by .* scores drifted by .* calibration"):
        dd.export(detector, tmp_path / "b.onnx", max_box_drift=1e-6, max_score_drift=1e-6, **options)
    assert not (tmp_path / "b.onnx").exists()


# ---------------------------------------------------------------- refusals


def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine adds to every score, as a wrong one would."""
    original = OnnxDraft.from_model

    def worse(*arguments: Any) -> OnnxDraft:
        draft = original(*arguments)
        for tensor in draft.proto.graph.initializer:
            if tensor.name.endswith("class_head.bias"):
                moved = np.frombuffer(tensor.raw_data, dtype=np.float32) + 1
                tensor.raw_data = moved.tobytes()
        return draft

    monkeypatch.setattr(OnnxDraft, "from_model", worse)


def test_drifting_results_are_refused_and_nothing_is_left(
    detector: Detector,
    traced_once: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken(monkeypatch)
    detector.save(tmp_path / "model")
    target = tmp_path / "out" / "m.onnx"
    arguments = ["export", str(tmp_path / "model"), "--to", "onnx", "--output", str(target)]
    assert main(arguments) == 1
    err = capsys.readouterr().err
    assert "m.onnx was not written: against the PyTorch model scores drifted by 0.2" in err
    assert "(drawn picture" in err
    assert "--operator gather" in err
    assert err.count("\n") == 1
    assert not target.parent.exists()
    target.parent.mkdir()
    target.write_text("what was there before")
    assert main(arguments) == 1
    assert target.read_text() == "what was there before"
    assert main([*arguments, "--max-score-drift", "0.5"]) == 0
    assert "allowed 0.001), scores within 2." in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"to": "tflite"}, "--to must be one of onnx, openvino, torch"),
        ({"output": "a.pt2"}, r"--to onnx writes a \.onnx file: name one, not a\.pt2"),
        ({"operator": "native"}, "--operator native is not available for onnx: choose grid_sample or gather"),
        ({"precision": "int4"}, "precision must be fp32 or int8, not int4"),
        ({"precision": "int8"}, "--precision int8 and --calibration IMAGES go together"),
        ({"calibration": "x"}, "--precision int8 and --calibration IMAGES go together"),
        (
            {"to": "torch", "output": "a.pt2", "precision": "int8", "calibration": "x"},
            "int8 is for --to onnx and openvino",
        ),
        ({"num_images": 0}, "num_images must be at least 1"),
        ({"max_box_drift": -1.0}, "--max-box-drift must not be negative"),
        ({"max_ap_drift": float("nan")}, "--max-ap-drift must not be negative"),
        ({"images": "nowhere"}, "nowhere: no image or video there"),
    ],
)
def test_wrong_options(
    detector: Detector, options: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("traced before the options were checked")

    monkeypatch.setattr(OnnxDraft, "from_model", refuse)
    with pytest.raises(UserError, match=words):
        dd.export(detector, **{"output": "a.onnx", "to": "onnx", **options})


def test_the_command_hands_its_options_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[str, Any] = {}

    def record(model: str, output: str, **options: Any) -> exportation.Export:
        given.update(model=model, output=output, **options)
        raise UserError("seen.")

    monkeypatch.setattr("deformable_detr.exporter.export", record)
    command = "export runs/x --to openvino --output a.xml --operator gather --precision int8 --num-images 3"
    command += " --calibration a.jpg b --images c d --data e --split test --max-ap-drift 0.1"
    assert main(command.split()) == 2
    assert capsys.readouterr().err == "deformable-detr: seen.\n"
    del given["console"]
    assert given == {
        "model": "runs/x",
        "output": "a.xml",
        "to": "openvino",
        "operator": "gather",
        "precision": "int8",
        "calibration": ["a.jpg", "b"],
        "images": ["c", "d"],
        "data": "e",
        "split": "test",
        "format": "auto",
        "num_images": 3,
        "max_pixels": None,
        "max_box_drift": None,
        "max_score_drift": None,
        "max_ap_drift": 0.1,
    }
    assert main(["export", "runs/x", "--output", "a.onnx"]) == 2
    assert "--to" in capsys.readouterr().err
    assert main(["export", "runs/x", "--to", "tflite", "--output", "a"]) == 2
    assert "must be one of onnx, openvino, torch, not 'tflite'" in capsys.readouterr().err


def test_a_missing_library_is_reported_before_anything_is_done(
    detector: Detector,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr("deformable_detr.extras.import_module", missing)
    detector.save(tmp_path / "model")
    code = main(["export", str(tmp_path / "model"), "--to", "onnx", "--output", str(tmp_path / "a.onnx")])
    assert code == 2
    assert 'pip install "deformable-detr[export]"' in capsys.readouterr().err


def test_a_wrong_suffix_is_refused_before_pytorch_is_imported(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['torch'] = None; from deformable_detr.cli.main import main; sys.exit(main())"
    )
    command = f"export demo --to onnx --output {tmp_path}/a.pt2".split()
    done = subprocess.run([sys.executable, "-c", program, *command], capture_output=True, text=True)
    assert done.returncode == 2
    assert "--to onnx writes a .onnx file: name one, not" in done.stderr


def test_an_exported_file_is_not_exported(detector: Detector, traced_once: None, tmp_path: Path) -> None:
    dd.export(detector, tmp_path / "a.onnx", to="onnx", num_images=1)
    with pytest.raises(UserError, match=r"a\.onnx is an exported model"):
        dd.export(tmp_path / "a.onnx", tmp_path / "b.xml", to="openvino")

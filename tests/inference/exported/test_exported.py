"""Exported files as detectors: the same interface without the PyTorch model, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import deformable_detr as dd
from deformable_detr import models
from deformable_detr.checkpoint import Decision, contents
from deformable_detr.cli import main
from deformable_detr.data.drawn import generate
from deformable_detr.errors import UserError
from deformable_detr.inference.exported import is_exported, load, metadata
from deformable_detr.inference.exported import model as exported_model
from deformable_detr.structures import ImageBatch
from tests.support.exported_files import CLASSES, GRAPH, Toy, toy_description, write_toy

for name in ("onnx", "onnxruntime", "openvino"):
    pytest.importorskip(name)

SUFFIXES = (".onnx", ".xml")


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toys")
    for suffix in SUFFIXES:
        write_toy(folder / f"toy{suffix}", {"drift": 0.5})
    return folder


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Building a PyTorch model is an error."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a PyTorch model was built")

    for module in (models, contents, import_module("deformable_detr.models.build")):
        monkeypatch.setattr(module, "build_model", refuse)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("size", [(1, 40, 64), (3, 61, 33), (2, 32, 32)])
def test_the_graph_for_any_size(toys: Path, suffix: str, size: tuple[int, int, int]) -> None:
    B, H, W = size
    pixels = torch.randn(B, 3, H, W, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(B, H, W, dtype=torch.bool)
    mask[-1, :, W // 2 :] = True
    found = load(toys / f"toy{suffix}").backend(ImageBatch(pixels, mask))
    logits, boxes = Toy()(pixels, mask)
    torch.testing.assert_close(found.logits, logits, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.boxes_cxcywh, boxes, atol=1e-6, rtol=0)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_detector_without_a_model(toys: Path, suffix: str, no_model: None) -> None:
    detector = dd.load(toys / f"toy{suffix}")
    known = toy_description()
    assert (detector.classes, detector.config, detector.data) == (CLASSES, known.config, known.data)
    assert detector.recipe == known.recipe
    red = np.zeros((50, 100, 3), dtype=np.uint8)
    red[..., 0], red[..., 1] = 255, 60
    one, other = detector.predict([red, red[:, ::-1].copy()], threshold=0.6)
    assert one.names[0] == "circle"
    assert one.category_ids[0] == 5
    np.testing.assert_allclose(one.boxes_xyxy[0], [20, 17.5, 40, 22.5], atol=1e-3)
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-6)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_thresholds_of_the_model_are_in_the_file(suffix: str, tmp_path: Path) -> None:
    decision = Decision((0.6, 0.9), ("own", "own"), "best_f1", "val", 3)
    path = write_toy(tmp_path / f"toy{suffix}", description=replace(toy_description(), decision=decision))
    detector = dd.load(path)
    assert detector.decision == decision
    red = np.zeros((50, 100, 3), dtype=np.uint8)
    red[..., 0], red[..., 1] = 255, 60
    found, everything = detector.predict(red), detector.predict(red, threshold=0.0)
    assert 0 < len(found) < len(everything)
    least = {"circle": np.float32(0.6), "square": np.float32(0.9)}
    assert len(found) == sum(
        score >= least[name] for score, name in zip(everything.scores, everything.names, strict=True)
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_evaluate_and_predict_without_a_model(
    toys: Path, suffix: str, no_model: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = generate(tmp_path / "data", train=1, val=2, image_size=(64, 80), seed=0)
    model = str(toys / f"toy{suffix}")
    assert main(["evaluate", model, str(data), "--output", str(tmp_path / "m.json")]) == 0
    assert json.loads((tmp_path / "m.json").read_text())["images"] == 2
    out = str(tmp_path / "out")
    assert main(["predict", model, str(data / "val"), "--output", out, "--threshold", "0"]) == 0
    rows = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {row["category_name"] for row in rows} == {"circle", "square"}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_operations_that_need_weights_are_refused(toys: Path, suffix: str, tmp_path: Path) -> None:
    detector = dd.load(toys / f"toy{suffix}")
    picture = np.zeros((32, 32, 3), dtype=np.uint8)
    for call in (
        lambda: detector.model,
        lambda: detector.checkpoint,
        lambda: detector.save(tmp_path / "c"),
        lambda: detector.explain(picture),
    ):
        with pytest.raises(UserError, match=f"toy{suffix} is an exported model, .* load the run"):
            call()
    assert not (tmp_path / "c").exists()


def test_threads_are_torchs(toys: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        onnx = load(toys / "toy.onnx").backend._session  # type: ignore[attr-defined]
        openvino = load(toys / "toy.xml").backend._compiled  # type: ignore[attr-defined]
    finally:
        torch.set_num_threads(before)
    assert onnx.get_session_options().intra_op_num_threads == 2
    assert openvino.get_property("INFERENCE_NUM_THREADS") == 2
    assert openvino.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"


def test_which_names_are_exported_files(tmp_path: Path) -> None:
    (tmp_path / "run.onnx").mkdir()
    assert is_exported("a.onnx")
    assert is_exported(Path("A.XML"))
    assert not is_exported(tmp_path / "run.onnx")
    assert not is_exported("runs/x")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "cuda"}, "runs on the CPU, not on cuda"),
        ({"dtype": "bf16"}, "computes as it was exported, not in bf16"),
        ({"dtype": torch.float16}, "not in torch.float16"),
    ],
)
def test_other_devices_and_types_are_refused(
    toys: Path, suffix: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        dd.load(toys / f"toy{suffix}", **options)
    dd.load(toys / f"toy{suffix}", device="cpu", dtype="fp32")


def test_no_file() -> None:
    with pytest.raises(UserError, match=r"there is no file nowhere\.onnx"):
        dd.load("nowhere.onnx")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_missing_library_is_one_sentence(
    toys: Path,
    suffix: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr("deformable_detr.extras.import_module", missing)
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    assert main(["predict", str(toys / f"toy{suffix}"), str(tmp_path)]) == 2
    assert 'pip install "deformable-detr[export]"' in capsys.readouterr().err


# ---------------------------------------------------------------- files that nobody vouches for


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.98])
def test_cut_off_files(toys: Path, suffix: str, share: float, tmp_path: Path) -> None:
    whole = (toys / f"toy{suffix}").read_bytes()
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(whole[: int(len(whole) * share)])
    if suffix == ".xml":
        path.with_suffix(".bin").write_bytes((toys / "toy.bin").read_bytes())
    with pytest.raises(UserError, match=f"cut{suffix}"):
        load(path)


def test_an_xml_needs_its_weights(toys: Path, tmp_path: Path) -> None:
    path = tmp_path / "toy.xml"
    path.write_bytes((toys / "toy.xml").read_bytes())
    with pytest.raises(UserError, match=r"toy\.bin.* is missing"):
        load(path)


def test_files_are_bounded(toys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exported_model, "MAX_BYTES", 100)
    for suffix in SUFFIXES:
        with pytest.raises(UserError, match="bytes, more than 100"):
            load(toys / f"toy{suffix}")


def onnx_with(toys: Path, path: Path, change: Callable[[Any], None]) -> Path:
    import onnx

    proto = onnx.load(toys / "toy.onnx")
    change(proto)
    path.write_bytes(proto.SerializeToString())
    return path


def described(change: Callable[[dict[str, Any]], object]) -> Callable[[Any], None]:
    def apply(proto: Any) -> None:
        entry = next(each for each in proto.metadata_props if each.key == metadata.DESCRIPTION)
        content = json.loads(entry.value)
        change(content)
        entry.value = json.dumps(content)

    return apply


def replaced(text: str) -> Callable[[Any], None]:
    def apply(proto: Any) -> None:
        for entry in proto.metadata_props:
            entry.value = text

    return apply


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda proto: proto.ClearField("metadata_props"), "does not describe its classes"),
        (replaced("{"), "cannot be read as JSON"),
        (replaced("[" * 100_000), "cannot be read as JSON"),
        (replaced("[]"), "must be a JSON object, not list"),
        (replaced(" " * 9_000_000), "9,000,000 characters"),
        (described(lambda c: c.update(format="other")), "has the format 'other'"),
        (described(lambda c: c.update(format_version=2)), "has format version 2"),
        (described(lambda c: c.update(extra=1)), r"unknown or missing fields \(extra\)"),
        (described(lambda c: c.pop("classes")), r"unknown or missing fields \(classes\)"),
        (described(lambda c: c.update(classes=3)), "is malformed"),
        (described(lambda c: c["classes"].update(names=[1, 2])), "is malformed"),
        (described(lambda c: c["classes"].update(category_ids=["1", "2"])), "is malformed"),
        (described(lambda c: c["classes"].update(names=["a"], category_ids=[1])), "names 1 classes"),
        (described(lambda c: c.update(recipe=["a"])), "there is no recipe"),
        (described(lambda c: c["model"].update(num_heads="many")), "model.num_heads"),
        (described(lambda c: c["preprocessing"].update(image_size=2)), "from 32 to"),
    ],
)
def test_metadata_are_parsed_strictly(
    toys: Path, tmp_path: Path, change: Callable[[Any], None], words: str
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        load(onnx_with(toys, tmp_path / "changed.onnx", change))
    assert "\n" not in str(caught.value)


def test_the_certificate_is_in_the_file(toys: Path) -> None:
    for suffix in SUFFIXES:
        assert load(toys / f"toy{suffix}").metadata.certificate == {"drift": 0.5}


def test_onnx_weights_in_other_files_are_not_read(toys: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(32))

    def external(proto: Any) -> None:
        tensor = next(each for each in proto.graph.initializer if each.name == "boxes")
        tensor.ClearField("float_data")
        tensor.ClearField("raw_data")
        tensor.data_location = tensor.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", str(secret)

    with pytest.raises(UserError, match="needs weights from other files"):
        load(onnx_with(toys, tmp_path / "a.onnx", external))


def external_tensor(proto: Any) -> Any:
    """A tensor that wants its content from a file of this machine."""
    import onnx

    tensor = onnx.TensorProto(name="secret", dims=[1], data_type=1, data_location=1)
    tensor.external_data.add(key="location", value="/etc/hostname")
    return tensor


def in_a_function(proto: Any) -> None:
    node = proto.functions.add(name="f", domain="").node.add(op_type="Constant", output=["y"])
    node.attribute.add(name="value", type=4).t.CopyFrom(external_tensor(proto))


def in_training(proto: Any) -> None:
    proto.training_info.add().algorithm.initializer.append(external_tensor(proto))


def without_saying_so(proto: Any) -> None:
    tensor = external_tensor(proto)
    tensor.data_location = 0
    proto.graph.initializer.append(tensor)


def of_a_vendor(proto: Any) -> None:
    proto.graph.node.add(op_type="EPContext", domain="com.microsoft", output=["z"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (in_a_function, "needs weights from other files"),
        (in_training, "needs weights from other files"),
        (without_saying_so, "needs weights from other files"),
        (of_a_vendor, "operators of 'com.microsoft'"),
    ],
)
def test_every_part_of_an_onnx_file_is_checked(
    toys: Path, tmp_path: Path, change: Callable[[Any], None], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        load(onnx_with(toys, tmp_path / "a.onnx", change))


def test_onnx_runtime_gets_what_was_checked_not_the_file(
    toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its parser may know fields that ours does not: they do not reach it."""
    import onnxruntime

    unknown = b"\xf2\xff\x07\x05alien"  # field 16382, of 5 bytes
    path = tmp_path / "a.onnx"
    path.write_bytes((toys / "toy.onnx").read_bytes() + unknown)
    given: list[bytes] = []
    original = onnxruntime.InferenceSession

    def record(content: bytes, *arguments: Any, **options: Any) -> Any:
        given.append(content)
        return original(content, *arguments, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", record)
    load(path)
    assert b"alien" in path.read_bytes()
    assert b"alien" not in given[0]


def test_an_xml_is_not_another_format(toys: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_bytes((toys / "toy.onnx").read_bytes())
    path.with_suffix(".bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"a\.xml .* not XML"):
        load(path)


def test_a_graph_of_another_shape(tmp_path: Path) -> None:
    other = GRAPH.replace("logits = Concat <axis = 1> (row, opposite)", "logits = Neg (opposite)")
    other = other.replace("float[batch,2,2] logits", "float[a,b,c] logits")
    path = write_toy(tmp_path / "other.onnx", graph=other)
    with pytest.raises(UserError, match="metadata specify 2 logits"):
        dd.load(path).predict(np.zeros((32, 32, 3), dtype=np.uint8))
    renamed = write_toy(tmp_path / "renamed.onnx", graph=GRAPH.replace("pixels", "images"))
    with pytest.raises(UserError, match="has the inputs images, mask"):
        load(renamed)


def test_a_program_of_torch_is_never_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """torch.export.load runs code that is in its file, so nothing may hand it one."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("torch saw the file")

    monkeypatch.setattr(torch.export, "load", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    file = tmp_path / "m.PT2"
    file.write_bytes(b"PK\x03\x04")
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    for command in (
        ["predict", str(file), str(tmp_path)],
        ["evaluate", str(file), str(tmp_path)],
        ["serve", str(file), "--port", "0"],
        ["explain", str(file), str(tmp_path / "a.png"), "--output", str(tmp_path / "page.html")],
        ["export", str(file), "--to", "onnx", "--output", str(tmp_path / "m.onnx")],
    ):
        assert main(command) == 2, command
        error = capsys.readouterr().err
        assert str(file) in error
        assert "run folder" in error, command
        assert error.count("\n") == 1
    with pytest.raises(UserError, match=r"give the run folder .* \.onnx or \.xml"):
        dd.load(file)


def test_a_run_folder_may_have_the_suffix_of_an_exported_file(tmp_path: Path) -> None:
    (tmp_path / "run.pt2" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no checkpoint yet"):
        dd.load(tmp_path / "run.pt2")

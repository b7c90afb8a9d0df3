"""A tiny model, pictures, and a run that nothing disturbed."""

from __future__ import annotations

from pathlib import Path

import pytest

from deformable_detr.bulk import predict_tables
from tests.support.bulk import write_model, write_photos

PICTURES, BROKEN, SHARD = 23, 11, 4


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("bulk") / "model")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("bulk") / "photos", PICTURES, BROKEN)


@pytest.fixture(scope="session")
def plain(model: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one local worker."""
    output = tmp_path_factory.mktemp("bulk") / "plain"
    predict_tables(model, photos, output, threshold=0.0, max_detections=5, shard_size=SHARD)
    return output

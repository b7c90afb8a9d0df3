"""Runs of `predict --format parquet` with a tiny model, and what is in their parts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import torch
from PIL import Image

from deformable_detr.checkpoint import save
from deformable_detr.inference.detector import new_checkpoint
from deformable_detr.structures import ClassTable
from tests.support.tiny import tiny_config

SHAPES = [(40, 60), (60, 40), (48, 64)]


def write_model(folder: Path, seed: int = 0) -> Path:
    """Write a checkpoint with random weights that finds something everywhere."""
    torch.manual_seed(seed)
    config = tiny_config()
    checkpoint = new_checkpoint(
        config.model, ClassTable(("cat", "dog"), (7, 3)), config.data, config.recipe, None
    )
    with torch.no_grad():
        for parameter in checkpoint.model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    save(folder, checkpoint)
    return folder


def write_photos(folder: Path, count: int, broken: int | None = None) -> Path:
    """Write pictures of three shapes in two folders; the one with the number `broken` is not a picture."""
    generator = np.random.default_rng(0)
    for number in range(count):
        path = folder / ("a" if number % 2 else "b") / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number == broken:
            path.write_bytes(b"not a picture")
            continue
        pixels = generator.integers(0, 256, (*SHAPES[number % 3], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, compress_level=1)
    return folder


def manifest_of(output: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((output / "manifest.json").read_text())
    return content


def parts_of(output: Path) -> dict[str, bytes]:
    """Return the bytes of all parts by name, whether the run is complete or not."""
    return {path.name: path.read_bytes() for path in sorted(output.glob("part-*.parquet"))}


def rows_of(output: Path) -> list[dict[str, Any]]:
    """Return the rows of all parts that a glob finds, by id."""
    rows = [
        row
        for path in output.glob("part-*.parquet")
        for row in pyarrow.parquet.ParquetFile(path).read().to_pylist()
    ]
    return sorted(rows, key=lambda row: int(row["id"]))


def assert_complete(output: Path, pictures: int) -> None:
    """Assert that each picture has exactly one row, and that the folder contains nothing else."""
    rows = rows_of(output)
    assert [row["id"] for row in rows] == list(range(1, pictures + 1))
    assert len({row["path"] for row in rows}) == pictures
    manifest = manifest_of(output)
    assert manifest["counts"]["pictures"] == pictures
    names = {part["name"] for part in manifest["parts"]}
    assert {path.name for path in output.iterdir()} == {*names, "manifest.json", "_run"}


def copy_of(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to

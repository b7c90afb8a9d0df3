"""Runs of `predict --format parquet` with a tiny model, and the contents of their parts."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import torch
from PIL import Image

from deformable_detr.checkpoint import save
from deformable_detr.detections import ClassTable
from deformable_detr.inference.loading import new_checkpoint
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


# ---------------------------------------------------------------------- runs in processes of their own


def start(model: Path, source: Path | str, output: Path, *words: str) -> subprocess.Popen[str]:
    """Start `predict --format parquet` in a process, without its output."""
    command = [sys.executable, "-m", "deformable_detr", "predict", str(model), str(source)]
    command += ["--output", str(output), "--format", "parquet", "--threshold", "0", "--max-detections", "5"]
    return subprocess.Popen([*command, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_for_parts(output: Path, number: int, process: subprocess.Popen[str]) -> None:
    """Wait until a run has written some parts.

    Raises:
        AssertionError: if the run ends before that.
    """
    while len(list(output.glob("part-*.parquet"))) < number:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)


def processes() -> dict[int, tuple[int, str]]:
    """Return (parent, command) of every process by its number."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:  # it has just ended
            continue
        found[int(folder.name)] = (parent, command.strip())
    return found


def descendants(ancestor: int) -> dict[int, str]:
    """Return the commands of the processes that `ancestor` and its children have started, by number."""
    all_of_them, family = processes(), {ancestor}
    while new := {number for number, (parent, _) in all_of_them.items() if parent in family} - family:
        family |= new
    return {number: all_of_them[number][1] for number in family - {ancestor} if number in all_of_them}


def wait_for_end(numbers: Iterable[int], seconds: float = 120) -> None:
    """Wait until processes have ended.

    Raises:
        AssertionError: if one of them still runs after `seconds`.
    """
    deadline = time.monotonic() + seconds
    while left := [number for number in numbers if _runs(number)]:
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.05)


def _runs(number: int) -> bool:
    try:
        return ") Z" not in Path(f"/proc/{number}/stat").read_text()
    except OSError:
        return False

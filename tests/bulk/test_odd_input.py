"""Odd names, tables and run folders of `predict --format parquet`: a row, or one sentence."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deformable_detr.bulk import predict_tables
from deformable_detr.bulk.plan import LISTING_FILE, PLAN_FOLDER, SETTINGS_FILE
from deformable_detr.bulk.sources import list_pictures
from deformable_detr.errors import UserError
from tests.support.scenes import write

parquet = pytest.importorskip("pyarrow.parquet")


def test_names_that_are_not_utf_8(model: Path, tmp_path: Path) -> None:
    good, broken = os.fsdecode(b"K\xe4fer.png"), os.fsdecode(b"Z\xe4hler.png")
    write(tmp_path / "in" / good)
    (tmp_path / "in" / broken).write_bytes(b"")
    report = predict_tables(model, tmp_path / "in", tmp_path / "out")
    assert (report.counts.pictures, report.counts.errors) == (2, 1)
    (part,) = (tmp_path / "out").glob("part-*")
    paths = parquet.read_table(part).column("path").to_pylist()
    assert [path.rpartition("/")[2] for path in paths] == ["K\\udce4fer.png", "Z\\udce4hler.png"]
    assert predict_tables(model, tmp_path / "in", tmp_path / "out").kept == 1


def test_a_table_that_is_damaged_in_the_middle(tmp_path: Path) -> None:
    import pyarrow

    file = tmp_path / "list.parquet"
    names = pyarrow.table({"path": [f"{number}.png" for number in range(5000)]})
    parquet.write_table(names, file, compression="none", use_dictionary=False)
    content = bytearray(file.read_bytes())
    content[4:400] = b"\xff" * 396
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"list\.parquet cannot be read as Parquet"):
        list(list_pictures([str(file)]))


def more_pictures(folder: Path) -> None:
    settings = json.loads((folder / SETTINGS_FILE).read_text())
    (folder / SETTINGS_FILE).write_text(json.dumps({**settings, "pictures": 10**6}))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / LISTING_FILE).unlink(),
        lambda folder: (folder / LISTING_FILE).write_text("x"),
        more_pictures,
    ],
)
def test_a_run_folder_that_was_changed(
    damage: Callable[[Path], object], model: Path, photos: Path, plain: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(plain, output)
    damage(output / PLAN_FOLDER)
    with pytest.raises(UserError, match="choose another --output"):
        predict_tables(model, photos, output, threshold=0.0, max_detections=5, shard_size=4)


@pytest.mark.parametrize("option", ["shard_size", "threads"])
def test_numbers_beyond_all_use(option: str, model: Path, photos: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {option: 10**30}
    with pytest.raises(UserError, match=f"{option} must be"):
        predict_tables(model, photos, tmp_path / "out", **options)

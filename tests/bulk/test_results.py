"""The result opens in pandas, DuckDB and as COCO's rows, as docs/scale.md shows."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pandas
import pytest

import deformable_detr as dd
from deformable_detr.bulk import read_results
from deformable_detr.errors import UserError
from tests.bulk.conftest import BROKEN, PICTURES
from tests.support.bulk import copy_of, rows_of


def test_duckdb_reads_the_parts(plain: Path) -> None:
    query = (
        f"SELECT count(*), count(DISTINCT id), count(error), sum(len(scores)) FROM '{plain}/part-*.parquet'"
    )
    assert duckdb.sql(query).fetchall() == [(PICTURES, PICTURES, 1, 5 * (PICTURES - 1))]
    boxes = f"SELECT path, unnest(boxes)[1], unnest(scores) FROM '{plain}/part-*.parquet' ORDER BY 1"
    assert len(duckdb.sql(boxes).fetchall()) == 5 * (PICTURES - 1)


def test_pandas_reads_the_parts(plain: Path) -> None:
    frame = pandas.read_parquet([str(path) for path in plain.glob("part-*.parquet")])
    assert len(frame) == PICTURES
    assert frame["error"].notna().sum() == 1
    rows = frame.explode(["boxes", "scores", "labels", "category_ids"])
    assert rows["scores"].notna().sum() == 5 * (PICTURES - 1)


def test_results_are_detections(model: Path, plain: Path) -> None:
    results = list(read_results(plain))
    assert [result.id for result in results] == list(range(1, PICTURES + 1))
    (unread,) = [result for result in results if result.detections is None]
    assert unread.path.endswith(f"{BROKEN:04}.png")
    assert unread.error is not None
    detector = dd.load(model, "cpu")
    for result, row in zip(results, rows_of(plain), strict=True):
        if result.detections is None:
            continue
        assert result.detections.boxes_xyxy.tolist() == row["boxes"]
        assert result.detections.scores.tolist() == row["scores"]
        assert set(result.detections.names) <= set(map(str, detector.classes.names))
        coco = result.detections.to_coco(result.id)
        assert [one["category_id"] for one in coco] == row["category_ids"]
        assert {one["image_id"] for one in coco} == {row["id"]}


def test_an_unfinished_run_is_not_read(plain: Path, tmp_path: Path) -> None:
    output = copy_of(plain, tmp_path / "out")
    (output / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"no manifest\.json, so its run is not complete"):
        list(read_results(output))


@pytest.mark.parametrize(
    "manifest", ["{}", '{"classes": 3}', '{"classes": {"names": ["a"], "category_ids": []}}']
)
def test_a_changed_manifest_is_refused(plain: Path, tmp_path: Path, manifest: str) -> None:
    output = copy_of(plain, tmp_path / "out")
    (output / "manifest.json").write_text(manifest)
    with pytest.raises(UserError, match="is not a manifest as bulk prediction writes it"):
        list(read_results(output))

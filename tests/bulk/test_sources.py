"""Lists of pictures from folders, patterns, lists, tables and URLs, without repeats."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet
import pytest

from deformable_detr.bulk import predict_tables
from deformable_detr.bulk.plan import Plan, pictures_of, write_listing
from deformable_detr.bulk.sources import Picture, list_pictures
from deformable_detr.errors import UserError
from tests.support.bulk import assert_complete, rows_of, write_photos
from tests.support.drafts import leave_draft


def test_a_folder_is_listed_in_sorted_order_without_drawings(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 4)
    (photos / "notes.md").write_text("")
    drawn = photos / "a" / "drawn"
    drawn.mkdir()
    (drawn / "x.png").touch()
    (drawn / "predictions.json").write_text("[]")
    (drawn / "report.json").write_text('{"made_by": "deformable-detr predict"}')
    found = list(list_pictures([str(photos)]))
    assert found == [
        Picture(str(photos / name), str(photos))
        for name in ("a/0001.png", "a/0003.png", "b/0000.png", "b/0002.png")
    ]
    assert list(list_pictures([f"{photos}/*/*[12].png"])) == [found[0]._replace(), found[3]._replace()]


def test_lists_are_relative_to_their_folder(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    text = tmp_path / "deep" / "list.txt"
    text.write_bytes("\ufeff../a.jpg\n\n/b.jpg\r\ns3://bucket/c.jpg\n".encode())
    wanted = [str(tmp_path / "a.jpg"), "/b.jpg", "s3://bucket/c.jpg"]
    assert [picture.path for picture in list_pictures([str(text)])] == wanted
    table = tmp_path / "deep" / "list.parquet"
    pa.parquet.write_table(pa.table({"path": ["../a.jpg", *wanted[1:]], "other": [1, 2, 3]}), table)
    assert [picture.path for picture in list_pictures([str(table)])] == wanted


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"file": ["a.jpg"]}, "has no column path or image, only file"),
        ({"path": ["a.jpg", None]}, "row 1: the path is None"),
        ({"path": pa.array([], pa.string())}, "contains no picture"),
    ],
)
def test_tables_that_are_no_lists_are_refused(
    tmp_path: Path, content: dict[str, object], message: str
) -> None:
    pa.parquet.write_table(pa.table(content), tmp_path / "list.parquet")
    with pytest.raises(UserError, match=message):
        list(list_pictures([str(tmp_path / "list.parquet")]))


def test_files_that_are_no_lists_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"a\.parquet cannot be read as Parquet"):
        list(list_pictures([str(tmp_path / "a.parquet")]))
    (tmp_path / "a.txt").write_bytes(b"a.jpg\n\xff\n")
    with pytest.raises(UserError, match=r"a\.txt, line 2 is not UTF-8"):
        list(list_pictures([str(tmp_path / "a.txt")]))
    with pytest.raises(UserError, match=r"nothere://x cannot be opened"):
        list(list_pictures(["nothere://x"]))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
@pytest.mark.parametrize("name", ["a.txt", "a.parquet"])
def test_a_pipe_is_no_list(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)  # opening it would wait for a writer for ever
    with pytest.raises(UserError, match="is a pipe"):
        list(list_pictures([str(tmp_path / name)]))


def test_a_stored_list_has_no_repeats_and_one_row_group_per_shard(tmp_path: Path) -> None:
    def pictures() -> Iterator[Picture]:
        for number in range(25):
            yield Picture(f"/photos/{number % 10}.jpg", "/photos")
        yield from (Picture("x", "", "t.parquet", row) for row in (0, 1, 0))

    assert write_listing(tmp_path / "list.parquet", pictures(), 5) == 12
    shards = list(Plan({}, tmp_path / "list.parquet").shards())
    assert [shard.num_rows for shard in shards] == [5, 5, 2]
    assert [number for shard in shards for number in shard.column("id").to_pylist()] == list(range(1, 13))
    listed = [picture for shard in shards for picture in pictures_of(shard)]
    assert [picture.path for picture in listed[:10]] == [f"/photos/{number}.jpg" for number in range(10)]
    assert listed[10:] == [Picture("x", "", "t.parquet", 0), Picture("x", "", "t.parquet", 1)]
    assert [path.name for path in tmp_path.iterdir()] == ["list.parquet"]


def test_a_long_list_is_not_held_in_memory(tmp_path: Path) -> None:
    """200,000 names of 100 letters would take 30 MB as texts; their hashes take 1.6 MB, twice when sorted."""
    pictures = (Picture(f"/{number:0100}.jpg") for number in range(200_000))
    write_listing(tmp_path / "warm.parquet", [Picture("/a.jpg")], 500)
    tracemalloc.start()
    try:
        write_listing(tmp_path / "list.parquet", pictures, 500)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8e6


def test_pictures_in_a_table_are_rows(model: Path, photos: Path, plain: Path, tmp_path: Path) -> None:
    """Bytes as such and as the library `datasets` stores them, in row groups that are no shards."""
    paths = sorted(photos.rglob("*.png"))
    content = [path.read_bytes() for path in paths]
    bare, named = tmp_path / "bare.parquet", tmp_path / "named.parquet"
    pa.parquet.write_table(pa.table({"image": content}), bare, row_group_size=7)
    structs = [{"bytes": one, "path": None} for one in content]
    names = [str(path) for path in paths]
    pa.parquet.write_table(pa.table({"path": names, "image": structs}), named, row_group_size=50)
    wanted = rows_of(plain)
    for source in (bare, named):
        output = tmp_path / source.stem
        predict_tables(model, source, output, threshold=0.0, max_detections=5, shard_size=4)
        rows = rows_of(output)
        assert_complete(output, len(paths))
        for name in ("id", "width", "boxes", "scores", "labels"):
            assert [row[name] for row in rows] == [row[name] for row in wanted], name
    assert [row["path"] for row in rows_of(tmp_path / "named")] == names
    assert rows_of(tmp_path / "bare")[6]["path"] == f"{bare}#6"


def test_a_table_that_has_shrunk_stops_the_run(model: Path, photos: Path, tmp_path: Path) -> None:
    content = [path.read_bytes() for path in sorted(photos.rglob("*.png"))[:6]]
    table = tmp_path / "in.parquet"
    pa.parquet.write_table(pa.table({"image": content}), table)

    def shrink(done: int, total: int, failed: int) -> None:
        pa.parquet.write_table(pa.table({"image": content[:5]}), table)

    with pytest.raises(UserError, match=r"in\.parquet has no row 5: it has changed"):
        predict_tables(model, table, tmp_path / "out", shard_size=3, progress=shrink)
    with pytest.raises(UserError, match=r"has no row 5"):
        predict_tables(model, table, tmp_path / "out", shard_size=3)


def test_a_url_is_listed_like_a_folder(model: Path, photos: Path, plain: Path, tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    files.put(str(photos), "/bulk/photos", recursive=True)
    try:
        output = tmp_path / "out"
        predict_tables(model, "memory://bulk/photos", output, threshold=0.0, max_detections=5, shard_size=4)
        rows, wanted = rows_of(output), rows_of(plain)
        assert [row["path"].rpartition("photos")[2] for row in rows] == [
            row["path"].rpartition("photos")[2] for row in wanted
        ]
        assert [row["scores"] for row in rows] == [row["scores"] for row in wanted]
        found = [picture.path for picture in list_pictures(["memory://bulk/photos/*/0001.png"])]
        assert found == ["memory:///bulk/photos/a/0001.png"]
        files.rm("/bulk/photos/a/0001.png")
        (output / next(output.glob("part-*")).name).unlink()
        predict_tables(model, "memory://bulk/photos", output, threshold=0.0, max_detections=5, shard_size=4)
        assert_complete(output, len(wanted))
    finally:
        files.rm("/bulk", recursive=True)


def test_a_killed_listing_leaves_no_plan(model: Path, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    leave_draft(output / "_run")
    predict_tables(model, photos, output)
    assert {path.name for path in output.iterdir()} == {
        "_run",
        "manifest.json",
        *(path.name for path in output.glob("part-*")),
    }

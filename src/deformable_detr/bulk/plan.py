"""The plan of a run: its settings and its list of pictures, stored before the first part is written.

The pictures are listed once. A run that is started again uses the stored list, so that a source that has
grown in the meantime cannot shift the shards, and the folder of a run never mixes two lists, models or
settings.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..files import read_json, replacing, write_json
from .libraries import library
from .sources import Picture, list_pictures

PLAN_FOLDER = "_run"  # programs that read folders of Parquet files ignore names with an underscore
SETTINGS_FILE, LISTING_FILE = "run.json", "pictures.parquet"
MANIFEST_FILE = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class Plan:
    """The settings of a run and its list of pictures.

    Attributes:
        settings: the content of run.json, which is the format, the identity of the job, the sources, the
            shard size and the number of pictures.
        listing: a Parquet file with one row group per shard and the columns id, path, root, table and row.
    """

    settings: dict[str, Any]
    listing: Path

    @property
    def pictures(self) -> int:
        number: int = self.settings["pictures"]
        return number

    def shards(self, indices: Iterable[int] | None = None) -> Iterator[Any]:
        """Yield the shards at `indices`, in this order, as Arrow tables; None means all shards.

        Raises:
            UserError: if the list of pictures is damaged or missing, or pyarrow is not installed.
        """
        return _row_groups(self.listing, indices)

    def part_name(self, shard: Any) -> str:
        """Return the file name of a shard's part, which depends on the job's identity and the pictures."""
        content = json.dumps([self.settings["identity"], shard.to_pydict()], sort_keys=True)
        return f"part-{hashlib.sha256(content.encode('utf-8', 'surrogatepass')).hexdigest()[:24]}.parquet"


def make_plan(output: Path, sources: list[str], shard_size: int, identity: dict[str, Any]) -> Plan:
    """Return the plan that `output` contains; if there is none, list the pictures and store a new plan.

    Raises:
        UserError: if `output` contains a plan that is damaged or has other settings, contains parts without a
            plan, or cannot be written, if a source cannot be listed or contains no picture, or if pyarrow is
            not installed.
    """
    folder = output / PLAN_FOLDER
    wanted = {"format": FORMAT, "identity": identity, "sources": sources, "shard_size": shard_size}
    if folder.is_dir():
        stored = read_json(folder / SETTINGS_FILE)
        _check_same(output, stored, wanted)
        return Plan(stored, folder / LISTING_FILE)
    if next(output.glob("part-*.parquet"), None) is not None:
        raise UserError(
            f"{output} contains parts but no {PLAN_FOLDER}/{SETTINGS_FILE} that states where they come from: "
            "choose another --output."
        )
    with replacing(folder) as draft:
        draft.mkdir()
        wanted["pictures"] = write_listing(draft / LISTING_FILE, list_pictures(sources), shard_size)
        write_json(draft / SETTINGS_FILE, wanted)
    return Plan(wanted, folder / LISTING_FILE)


def _check_same(output: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    before, now = _flat(stored), _flat(json.loads(json.dumps(wanted)))
    for name in now:
        if name not in before or before[name] != now[name]:
            raise UserError(
                f"{output} was begun with another {name} ({_short(before.get(name))}, now "
                f"{_short(now[name])}), and its parts are not mixed with new ones: choose another --output, "
                "or repeat the first command."
            )


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, dict) and name in ("identity", "options", "versions"):
            flat |= _flat(value, "" if name == "identity" else f"{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def write_listing(file: Path, pictures: Iterable[Picture], shard_size: int) -> int:
    """Write the list of pictures without repeats, one row group per shard, and return the number of pictures.

    Only the pictures of one shard and an 8-byte hash of each picture are held in memory. If two hashes are
    equal, the list is written once more, without repeated pictures.

    Raises:
        UserError: if pyarrow is not installed. Errors of `pictures` are not caught.
    """
    hashes = array("q")

    def counted() -> Iterator[Picture]:
        for picture in pictures:
            hashes.append(hash(picture.place))
            yield picture

    number = _write_rows(file, counted(), shard_size)
    ordered = np.sort(np.frombuffer(hashes, np.int64))
    repeated = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    if not repeated:
        return number
    first = file.with_name(f"{file.name}.repeats")
    file.rename(first)
    number = _write_rows(file, _without_repeats(first, repeated), shard_size)
    first.unlink()
    return number


def _without_repeats(file: Path, repeated: set[int]) -> Iterator[Picture]:
    seen: set[tuple[str, int]] = set()
    for picture in (one for shard in _row_groups(file) for one in pictures_of(shard)):
        place = picture.place
        if hash(place) in repeated:
            if place in seen:
                continue
            seen.add(place)
        yield picture


def _row_groups(file: Path, indices: Iterable[int] | None = None) -> Iterator[Any]:
    arrow, parquet = library("pyarrow"), library("pyarrow.parquet")
    try:
        listing = parquet.ParquetFile(file)
    except (OSError, arrow.ArrowException) as error:
        raise UserError(
            f"{file} is damaged or missing, so the run cannot continue: choose another --output."
        ) from error
    with listing:
        for index in range(listing.num_row_groups) if indices is None else indices:
            yield listing.read_row_group(index)


def pictures_of(shard: Any) -> list[Picture]:
    """Return the pictures of a shard, an Arrow table with the columns of `Plan.listing`, in their order."""
    columns = [shard.column(name).to_pylist() for name in Picture._fields]
    return [Picture(*map(_restored, row)) for row in zip(*columns, strict=True)]


def _storable(value: Any) -> Any:
    """Return a value that Parquet can hold.

    A name that is not UTF-8 or begins with NUL becomes a NUL followed by its bytes in hex.
    """
    if isinstance(value, str) and (value.startswith("\0") or not _is_utf_8(value)):
        return f"\0{value.encode('utf-8', 'surrogateescape').hex()}"
    return value


def _restored(value: Any) -> Any:
    """Return the original of a result of `_storable`."""
    if isinstance(value, str) and value.startswith("\0"):
        return bytes.fromhex(value[1:]).decode("utf-8", "surrogateescape")
    return value


def _is_utf_8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _write_rows(file: Path, pictures: Iterable[Picture], shard_size: int) -> int:
    arrow, parquet = library("pyarrow"), library("pyarrow.parquet")
    text = arrow.string()
    schema = arrow.schema(
        [("id", arrow.int64()), ("path", text), ("root", text), ("table", text), ("row", arrow.int64())]
    )
    number = 0
    waiting: list[Picture] = []
    with parquet.ParquetWriter(file, schema, compression="zstd") as writer:

        def write() -> None:
            columns = [list(map(_storable, column)) for column in zip(*waiting, strict=True)]
            ids = list(range(number - len(waiting) + 1, number + 1))
            writer.write_table(arrow.table([ids, *columns], schema=schema), row_group_size=shard_size)
            waiting.clear()

        for picture in pictures:
            number += 1
            waiting.append(picture)
            if len(waiting) == shard_size:
                write()
        if waiting:
            write()
    return number

"""docs/architecture.md lists the rooms floor by floor, as the import contract in pyproject.toml has them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "deformable_detr"


def floors_of_contract() -> list[set[str]]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = [each for each in settings["tool"]["importlinter"]["contracts"] if each["type"] == "layers"]
    (contract,) = [each for each in contracts if each.get("containers") == ["deformable_detr"]]
    return [set(re.split(r" *[|:] *", layer)) for layer in contract["layers"]]


def names_on_page() -> list[list[str]]:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"^\| floor \| rooms \|\n\|[-|]+\n((?:\|.*\n)+)", page, re.MULTILINE)
    return [re.findall(r"`([^`]+)`", row) for row in table.splitlines()]


def test_the_page_has_the_floors_of_the_contract() -> None:
    floors = [{name.removesuffix("/").removesuffix(".py") for name in row} for row in names_on_page()]
    assert floors == floors_of_contract()


def test_rooms_are_folders_and_files_as_the_page_writes_them() -> None:
    for name in (name for row in names_on_page() for name in row):
        path = PACKAGE / name
        assert path.is_dir() if name.endswith("/") else path.is_file(), name


def test_no_room_is_missing_from_the_contract() -> None:
    rooms = {path.stem for path in PACKAGE.glob("*.py")} | {
        path.parent.name for path in PACKAGE.glob("*/__init__.py")
    }
    assert rooms - {"__init__"} == set().union(*floors_of_contract())

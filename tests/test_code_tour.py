"""docs/code_tour.md: every step names a file, a function in it, and what that function calls."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "deformable_detr"
TOUR = (ROOT / "docs" / "code_tour.md").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Stop:
    """What a step names: "`FILE`: `function` → `called`, `called`"."""

    file: str
    function: str
    called: tuple[str, ...]


def stops(text: str) -> list[Stop]:
    one = r"`([\w/]+\.py)`: `([\w.]+)`((?: →(?: `[\w.]+`,?)+)?)"
    return [
        Stop(file, function, tuple(re.findall(r"`([\w.]+)`", called)))
        for file, function, called in re.findall(one, " ".join(text.split()))
    ]


def definition(file: str, name: str) -> ast.AST | None:
    """The function, class or method `name`, such as `Class.method`, in a file of the package."""
    scope: ast.AST = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
    for part in name.split("."):
        inside = [
            node
            for node in ast.iter_child_nodes(scope)
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == part
        ]
        if not inside:
            return None
        scope = inside[-1]
    return scope


def names_used(node: ast.AST) -> set[str]:
    """Every name and attribute in the source of a definition."""
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)} | {
        each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute)
    }


def test_steps_are_found() -> None:
    text = (
        "1. **A.** Words.\n   `models/neck.py`: `FPN.forward` → `mapper`,\n   `output`\n2. `boxes.py`: `iou`"
    )
    assert stops(text) == [
        Stop("models/neck.py", "FPN.forward", ("mapper", "output")),
        Stop("boxes.py", "iou", ()),
    ]
    forward = definition("models/neck.py", "FPN.forward")
    assert forward is not None
    assert {"mapper", "output"} <= names_used(forward)
    assert definition("models/neck.py", "FPN.nothing") is None


@pytest.mark.parametrize("stop", stops(TOUR), ids=lambda stop: f"{stop.file}:{stop.function}")
def test_a_step_is_in_the_code(stop: Stop) -> None:
    assert (PACKAGE / stop.file).is_file()
    found = definition(stop.file, stop.function)
    assert found is not None
    assert not [name for name in stop.called if name.rpartition(".")[2] not in names_used(found)]


def test_each_numbered_step_names_a_function() -> None:
    steps = re.split(r"^\d+\. ", TOUR, flags=re.MULTILINE)[1:]
    assert not [step[:40] for step in steps if not stops(step.partition("\n\n")[0])]


@pytest.mark.parametrize("line", re.findall(r"^    (register_\w+\(.*\))$", TOUR, re.MULTILINE))
def test_the_one_line_of_a_change_is_in_its_example(line: str) -> None:
    assert any(line in path.read_text(encoding="utf-8") for path in (ROOT / "examples").glob("*.py"))

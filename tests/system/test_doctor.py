"""Doctor: facts about the machine, and a self-test that would notice a wrong operator."""

from __future__ import annotations

import pytest
import torch

from deformable_detr.cli import main
from deformable_detr.system import doctor
from deformable_detr.system.doctor import PACKAGES, diagnose


def test_a_healthy_machine() -> None:
    diagnosis = diagnose()
    assert diagnosis.healthy
    assert diagnosis.facts["torch"] == torch.__version__.split("+")[0]
    assert set(PACKAGES) <= set(diagnosis.facts)
    assert {"operator, cpu", "fused operator, cpu"} <= set(diagnosis.tests)
    assert all(error < 1e-5 for error in diagnosis.tests.values())


@pytest.mark.parametrize("name", ["ms_deform_attn", "fused_ms_deform_attn"])
@pytest.mark.parametrize("damage", [lambda x: x + 1e-2, lambda x: x * float("nan")], ids=["off", "nan"])
def test_a_wrong_operator_is_noticed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, damage: object
) -> None:
    original = getattr(doctor, name)
    monkeypatch.setattr(doctor, name, lambda *arguments: damage(original(*arguments)))  # type: ignore[operator]
    assert not diagnose().healthy
    assert main(["doctor"]) == 1
    assert "NOT healthy" in capsys.readouterr().out


def test_the_command_prints_lines_of_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "healthy"
    assert max(map(len, lines)) <= 80

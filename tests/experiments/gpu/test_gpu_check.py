"""The check that a GPU will run: its bookkeeping here, and the whole script in its form for a CPU."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from experiments.gpu import STEPS
from experiments.gpu.bench_op import cuts
from experiments.gpu.op_cases import KINDS, make_call, with_wild_points
from experiments.gpu.report import Facts, Report, limit, relative_error
from experiments.gpu.summary import write_summary

ROOT = Path(__file__).parents[3]


def finished(letter: str, tmp_path: Path, *, good: bool) -> None:
    report = Report(letter, tmp_path / "work", tmp_path / "out", seconds=60)
    report.find("thing", lambda finding: limit(finding, 0.1 if good else math.nan, 0.2))
    report.finish()


def test_an_error_is_a_finding_and_the_next_one_has_its_turn(tmp_path: Path) -> None:
    report = Report("a", tmp_path / "work", tmp_path / "out", seconds=60)

    def fail(finding: Facts) -> None:
        finding["before"] = 1
        raise RuntimeError("illegal memory access")

    report.find("first", fail)
    report.find("second", lambda finding: finding.update(value=float("inf")))
    report.find("third", fail, needs_seconds=1000)
    step = json.loads((tmp_path / "out" / "results.json").read_text())["steps"]["a"]
    first, second, third = step["findings"]
    assert (first["ok"], first["before"], first["error"]) == (False, 1, "RuntimeError: illegal memory access")
    assert any("raise RuntimeError" in line for line in first["traceback"])
    assert (second["ok"], second["value"]) == (True, "inf")
    assert third["skipped"]
    assert not step["finished"]


@pytest.mark.parametrize(("value", "ok"), [(0.5, True), (1.5, False), (math.nan, False)])
def test_beyond_its_bound_a_value_fails_the_finding(value: float, ok: bool) -> None:
    finding: Facts = {"ok": True}
    limit(finding, value, 1.0)
    assert finding["ok"] is ok


def test_exit_code_and_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work, output = tmp_path / "work", tmp_path / "out"
    finished("a", tmp_path, good=True)
    finished("e", tmp_path, good=False)  # it only measures
    assert write_summary(work, output, "ae") == 0
    assert write_summary(work, output, "aeb") == 1  # b never began
    finished("b", tmp_path, good=False)
    capsys.readouterr()
    assert write_summary(work, output, "ab") == 1
    printed = capsys.readouterr().out
    assert printed == (output / "summary.txt").read_text()
    assert "NOT GOOD thing: relative_error is nan, more than 0.2" in printed
    Report("c", work, output, seconds=60)
    assert write_summary(work, output, "ac") == 1  # cut off


@pytest.mark.parametrize("kind", KINDS)
def test_calls_keep_away_from_where_the_surface_bends(kind: str) -> None:
    """So that float32 and float64 see the same slope at every point."""
    call = make_call(kind, torch.float32, torch.Generator().manual_seed(0), B=1, Q=9, M=2, D=4)
    for name, value in call.run().items():
        assert relative_error(value, call.run(exact=True)[name]) < 1e-5
    wild, outside = with_wild_points(call)
    error = relative_error(wild.run()["output"], outside.run(exact=True)["output"])
    assert error < 1e-5


def test_every_cut_can_be_launched() -> None:
    """Powers of two, and at least one vector of 16 bytes for each thread."""
    for which in ("forward", "backward"):
        for dtype in ("float32", "bfloat16"):
            found = list(cuts(which, dtype))
            assert len(set(found)) == len(found) > 10
            for queries, warps, unroll in found:
                assert all(number & (number - 1) == 0 for number in (queries, warps, unroll))
                assert queries * 32 * 4 >= 32 * warps * 8


def test_every_step_names_what_only_a_gpu_can_tell() -> None:
    for letter, step in STEPS.items():
        assert step.only_a_gpu, letter
        assert (ROOT / "experiments" / "gpu" / f"{step.module}.py").is_file()


@pytest.mark.slow
def test_the_whole_script_on_a_cpu(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", "scripts/gpu_check.sh", "--device", "cpu", "--quick", str(tmp_path / "out")],
        cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    steps = json.loads((tmp_path / "out" / "results.json").read_text())["steps"]
    assert list(steps) == list(STEPS)
    assert all(step["finished"] for step in steps.values())
    assert all(finding["ok"] for step in steps.values() for finding in step["findings"])
    assert len(list((tmp_path / "out").iterdir())) <= 8

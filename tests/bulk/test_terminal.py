"""Progress without a terminal, and the summary."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from deformable_detr.bulk import TablesReport, print_report, tables_progress
from deformable_detr.bulk.table import Counts


def test_a_line_now_and_then_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    said = ""
    with tables_progress(every=0.01) as progress:
        progress(100, 1000, 0)  # an earlier run's
        progress(400, 1000, 2)
        end = time.monotonic() + 100  # a busy machine is slow
        while "400 of" not in said and time.monotonic() < end:
            time.sleep(0.01)
            said += capsys.readouterr().err
    lines = (said + capsys.readouterr().err).splitlines()
    assert lines
    assert lines[-1].startswith("400 of 1,000 pictures, ")
    assert "per second" in lines[-1]
    assert "left" in lines[-1]
    assert lines[-1].endswith("2 unreadable")


def test_the_summary_counts(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(TablesReport(Counts(1200, 5000, 3), 3, 2, Path("out/manifest.json")))
    printed = capsys.readouterr()
    assert printed.out == "5,000 detections in 1,200 pictures: out, 3 parts, 2 of them from an earlier run\n"
    assert "3 of 1,200 pictures could not be read" in printed.err

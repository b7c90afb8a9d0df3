"""The stop-watch: who runs when, what a turn is, medians; memory against a block of known size."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from deformable_detr.errors import UserError
from experiments.benchmark.measure import (
    Timing,
    alternate,
    chosen_peers,
    machine,
    peak_memory,
    write_report,
)


class FakeClock:
    """Time passes only where a case says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now

    def case(self, name: str, seconds: list[float]) -> Callable[[], None]:
        remaining = iter(seconds)

        def run() -> None:
            self.log.append(name)
            self.now += next(remaining)

        return run


def test_cases_take_turns_and_every_second_round_goes_backwards() -> None:
    clock = FakeClock()
    cases = {name: clock.case(name, [1.0] * 5) for name in "ABC"}
    timings = alternate(cases, repeats=3, warmup=2, clock=clock)
    assert "".join(clock.log) == "AABBCC" + "ABC" + "CBA" + "ABC"
    assert list(timings) == ["A", "B", "C"]
    assert timings["A"].seconds == (1.0, 1.0, 1.0)


def test_a_short_case_runs_several_times_a_turn_and_reports_seconds_per_call() -> None:
    clock = FakeClock()
    # Warm-up says 20 ms: a turn of 50 ms is three calls.
    short = clock.case("short", [0.02, *(0.02, 0.02, 0.05), *(0.01, 0.01, 0.01)])
    cases = {"short": short, "long": clock.case("long", [1.0] * 3)}
    timings = alternate(cases, repeats=2, clock=clock)
    assert clock.log.count("short") == 1 + 2 * 3
    assert clock.log.count("long") == 1 + 2
    assert timings["short"].seconds == pytest.approx((0.03, 0.01))


def test_the_warm_up_does_not_count() -> None:
    clock = FakeClock()
    timings = alternate({"A": clock.case("A", [9.0, 1.0, 2.0, 6.0])}, repeats=3, clock=clock)
    assert timings["A"].seconds == (1.0, 2.0, 6.0)


def test_median_and_interquartile_range() -> None:
    timing = Timing((5.0, 1.0, 2.0, 3.0, 4.0))
    assert timing.median == 3.0
    assert timing.spread == 2.0  # from 2 to 4
    assert timing.to_dict() == {
        "median_seconds": 3.0,
        "spread_seconds": 2.0,
        "fastest_seconds": 1.0,
        "turns": 5,
    }
    assert Timing((1.0,)).spread == 0.0


MEGABYTE = 2**20


def _allocates(before: int, during: int) -> Callable[[], object]:
    """Holds `before` bytes, and touches `during` more in the call."""
    bytes(b"\1" * (2 * before))  # neither a peak of the preparation counts
    for _ in range(2):  # nor do blocks that it freed serve the call: glibc keeps the second of these
        bytes(b"\1" * (during + MEGABYTE))
    held = bytearray(b"\1" * before)
    return lambda: (len(held), len(b"\1" * during))


def test_peak_memory_counts_the_call_and_not_its_preparation() -> None:
    memory = peak_memory(_allocates, 50 * MEGABYTE, 20 * MEGABYTE)
    assert memory.before >= 50 * MEGABYTE
    assert memory.peak == memory.before + memory.rise
    assert memory.rise == pytest.approx(20 * MEGABYTE, abs=2 * MEGABYTE)


def _fails() -> Callable[[], object]:
    raise ZeroDivisionError("in the other process")


def test_an_error_in_the_other_process_is_raised_here() -> None:
    with pytest.raises(ZeroDivisionError, match="in the other process"):
        peak_memory(_fails)


def test_machine_is_plain_data_and_names_what_a_number_needs() -> None:
    facts = machine()
    assert json.loads(json.dumps(facts)) == facts
    assert {"cpu", "cores", "operator", "torch", "commit", "date", "load_average_at_start"} <= set(facts)
    assert facts["cores"] >= 1


def test_peers_are_those_installed_and_the_others_say_why_not() -> None:
    known = {"wanted": "torch", "absent": "deformable-detr-no-such-package"}
    installed, missing = chosen_peers(None, known)
    assert list(installed) == ["wanted"]
    assert missing == {"absent": "not installed (pip install deformable-detr-no-such-package)"}
    assert chosen_peers("absent", known) == ({}, missing)
    assert chosen_peers("", known) == ({}, {})


def test_an_unknown_peer_is_refused() -> None:
    with pytest.raises(UserError, match="--against tensorfloww: no such peer; choose from a, b"):
        chosen_peers("a,tensorfloww", {"a": "torch", "b": "torch"})


def test_a_report_holds_no_nan_and_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "report.json"
    write_report(path, {"a": 1})
    assert json.loads(path.read_text()) == {"a": 1}
    with pytest.raises(ValueError):
        write_report(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [file.name for file in path.parent.iterdir()] == ["report.json"]

"""Numbers and counts in words."""

from __future__ import annotations

import os
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deformable_detr.words import (
    command_line,
    count,
    duration,
    listed,
    metric,
    percent,
    printable,
    setting,
    when,
)


@pytest.mark.parametrize("missing", [-1.0, float("nan")])
def test_a_metric_that_does_not_exist_is_not_available(missing: float) -> None:
    assert percent(missing) == metric(missing) == "n/a"
    assert (percent(0.4567), metric(0.4567)) == ("45.7", "0.457")


def test_counts() -> None:
    assert [count(number, "epoch") for number in (0, 1, 1200)] == ["0 epochs", "1 epoch", "1,200 epochs"]
    assert [count(2, noun) for noun in ("class", "query", "layer")] == ["2 classes", "2 queries", "2 layers"]


def test_lists() -> None:
    assert [listed(names, 2) for names in ([], ["a", "b"], ["a", "b", "c"])] == [
        "none",
        "a, b",
        "a, b, … and 1 more",
    ]


def test_times() -> None:
    assert [duration(seconds) for seconds in (5, 600, 7200)] == ["5 seconds", "10 minutes", "2.0 hours"]
    assert when("2026-01-02T03:04:05.678") == "2026-01-02 03:04 UTC"


def test_settings_as_in_yaml() -> None:
    assert [setting(value) for value in ([], [1, 2], True, 1e-4, None, "a")] == [
        "none", "1, 2", "true", "0.0001", "none", "a",
    ]  # fmt: skip


def test_a_command_survives_the_shell() -> None:
    words = ("report", "a model", "$(rm) 'x'")
    assert shlex.split(command_line(*words)) == ["deformable-detr", *words]


def test_control_characters_are_replaced() -> None:
    assert printable("größer\n") == "größer\n"
    assert printable("a\x1b[31m\u202e.jpg") == "a\\x1b[31m\\u202e.jpg"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Größe 猫 🐈", "Größe 猫 🐈"),
        ("\x1b]0;owned\x07\x1b[2J", "\\x1b]0;owned\\x07\\x1b[2J"),
        ("\x9b2J", "\\x9b2J"),
        ("a\tc\rd", "a\\x09c\\x0dd"),
        (os.fsdecode(b"K\xe4fer"), "K\\xe4fer"),
        ("\ud800", "\\ud800"),
        ("a\u2028b", "a\\u2028b"),
    ],
)
def test_what_a_terminal_could_obey_is_shown(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text())
def test_everything_printable_can_be_written_as_utf_8(text: str) -> None:
    assert "\x1b" not in printable(text)
    printable(text).encode("utf-8")

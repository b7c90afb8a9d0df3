from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deformable_detr.text import visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("car", "car"),
        ("Größe 猫 🐈", "Größe 猫 🐈"),
        ("\x1b]0;owned\x07\x1b[2J", "\\x1b]0;owned\\x07\\x1b[2J"),
        ("\x9b2J", "\\x9b2J"),
        ("a\nb\tc\rd", "a\\x0ab\\x09c\\x0dd"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        (os.fsdecode(b"K\xe4fer"), "K\\xe4fer"),
        ("\ud800", "\\ud800"),
        ("a\u2028b", "a\\u2028b"),
    ],
)
def test_what_a_terminal_could_obey_is_shown(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_what_is_meant_is_kept() -> None:
    assert visible("two\nlines\x1b", keep="\n") == "two\nlines\\x1b"


@given(st.text())
def test_everything_can_be_written_as_utf_8(text: str) -> None:
    assert "\x1b" not in visible(text)
    visible(text).encode("utf-8")

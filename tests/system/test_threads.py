"""Work in advance: in order, and not further than asked."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from deformable_detr.system.threads import READ_AHEAD, ahead, read_ahead


def test_calls_are_made_in_advance_and_answered_in_order() -> None:
    started: list[int] = []

    def call(number: int) -> int:
        started.append(number)
        return number

    with ThreadPoolExecutor(2) as pool:
        for number, answer in enumerate(ahead((partial(call, i) for i in range(20)), pool, 3)):
            assert answer == number
            assert len(started) <= number + 4
    assert sorted(started) == list(range(20))


def test_items_are_made_by_one_thread() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(10):
            made.append(number)
            yield number

    with ThreadPoolExecutor(1) as thread:
        for number, item in enumerate(read_ahead(items(), thread)):
            assert item == number
            assert len(made) <= number + 2 + READ_AHEAD
    assert made == list(range(10))


def test_an_error_comes_out_at_its_place() -> None:
    def items() -> Iterator[int]:
        yield 0
        raise ZeroDivisionError

    with ThreadPoolExecutor(1) as thread:
        ahead_of_reader = read_ahead(items(), thread)
        assert next(ahead_of_reader) == 0
        with pytest.raises(ZeroDivisionError):
            next(ahead_of_reader)

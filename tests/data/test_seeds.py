"""Seeds are a function of the place in a run, the same on every machine and in every version of Python."""

from __future__ import annotations

from itertools import product

from deformable_detr.data.seeds import seed_sequence


def number(seed: int, *place: int) -> int:
    return int(seed_sequence(seed, *place).generate_state(1, "uint64")[0])


def test_the_numbers_themselves() -> None:
    # NumPy promises that they stay. A training state depends on them.
    assert number(42, 3, 1, 0) == 14294435893030809929
    assert number(-1, 0) == 14031750673298188677


def test_no_place_has_the_numbers_of_another() -> None:
    seeds = (-2, -1, 0, 1)  # of which hash((seed, …)) would confuse the first two
    places = [place for length in (1, 2, 3) for place in product(range(4), repeat=length)]
    numbers = {number(seed, *place) for seed in seeds for place in places}
    assert len(numbers) == len(seeds) * len(places)

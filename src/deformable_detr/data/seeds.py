"""Random numbers that depend on a position in a run, and not on earlier draws."""

from __future__ import annotations

import numpy as np


def seed_sequence(seed: int, *place: int) -> np.random.SeedSequence:
    """Return the seed of the random numbers at one position of a run, such as (epoch, index of the image).

    The position is passed as the spawn key, because as plain entropy (seed, epoch) and (seed, epoch, 0) would
    give the same stream. `seed` is taken modulo 2⁶⁴, because it may be negative, which SeedSequence refuses.
    """
    return np.random.SeedSequence(seed % 2**64, spawn_key=place)

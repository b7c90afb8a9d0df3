"""Random numbers that depend on a place in a run, not on what was drawn before it."""

from __future__ import annotations

import numpy as np


def seed_sequence(seed: int, *place: int) -> np.random.SeedSequence:
    """The seed of the random numbers at one place of a run, such as (epoch, index of the image).

    The place is the spawn key, because in plain entropy (seed, epoch) and (seed, epoch, 0) would be the same
    stream. `seed` may be negative, which SeedSequence does not take.
    """
    return np.random.SeedSequence(seed % 2**64, spawn_key=place)

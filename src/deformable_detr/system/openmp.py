"""PyTorch's threads on a CPU: how many there are, and how they wait for each other.

PyTorch splits each operation among the threads of OpenMP, which wait for each other at its end. By default,
they spin: on an idle machine this is the fastest way, but if other programs run as well, a spinning thread
takes the core on which the thread that it waits for should run. And GNU's OpenMP knows nothing of the quota
of a container, so that too many threads would use it up spinning.

Both settings are read when PyTorch is imported. The package's commands make them before that, unless the
user's environment says otherwise. Importing the package does not change a process.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from .machine import cores_of_affinity, num_cores

THREADS, SPINS = "OMP_NUM_THREADS", "GOMP_SPINCOUNT"
WAITING = ("OMP_WAIT_POLICY", SPINS, "KMP_BLOCKTIME")  # each of them means that the user has decided
FEW_SPINS = 1000  # some ten microseconds: longer than most pauses between two operations


def prepare_threads() -> None:
    """Choose the number of threads and their waiting. This has no effect after PyTorch was imported."""
    os.environ.update(thread_settings(os.environ))


def thread_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables to add to an environment; those that it has are not changed."""
    settings = {}
    if THREADS not in environment and (cores := num_cores()) < cores_of_affinity():
        settings[THREADS] = str(cores)
    if not any(name in environment for name in WAITING):
        settings[SPINS] = str(FEW_SPINS)
    return settings


def waiting_in_words(environment: Mapping[str, str] = os.environ) -> str:
    """Describe how the threads wait, in the words of the variables that say so."""
    decided = [f"{name}={environment[name]}" for name in WAITING if name in environment]
    return ", ".join(decided) or "spin (OpenMP's default)"

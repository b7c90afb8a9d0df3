"""PyTorch's threads on a CPU: how many there are, and how they wait for each other.

PyTorch splits each operation among the threads of OpenMP, which wait for each other at its end. By default,
they spin. This is fastest on an otherwise idle machine, where waking a thread takes a tenth of the time of a
picture (docs/speed.md). If other programs run as well, however, a spinning thread may occupy the core that
the thread it waits for needs, and sleeping is several times as fast. GNU's OpenMP also ignores a container's
quota: it starts too many threads, which would use up the quota by spinning.

PyTorch reads both settings from the environment when it is imported. The package's commands set them before
that, unless the user has set them. Importing the package does not change the environment.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from .machine import cores_of_affinity, load_average, num_cores

THREADS, SPINS = "OMP_NUM_THREADS", "GOMP_SPINCOUNT"
WAITING = ("OMP_WAIT_POLICY", SPINS, "KMP_BLOCKTIME")  # if one of them is set, the user has decided
FEW_SPINS = 1000  # about ten microseconds
QUIET_LOAD = 0.5  # with fewer processes than this, on average, a machine counts as idle


def prepare_threads(*, lasting: bool) -> None:
    """Set in the environment how many threads PyTorch uses and how they wait, unless the user has set it.

    They spin only briefly if other programs keep cores busy that they need. This has no effect once PyTorch
    has been imported.

    Args:
        lasting: whether the process runs for so long that other programs may start meanwhile. If so, threads
            spin only briefly in any case.
    """
    os.environ.update(thread_settings(os.environ, spin_briefly=lasting or _others_need_cores()))


def thread_settings(environment: Mapping[str, str], *, spin_briefly: bool) -> dict[str, str]:
    """Return the variables to add to `environment`, without those that it already contains.

    OMP_NUM_THREADS is added only if a quota limits the number of cores, and GOMP_SPINCOUNT only with
    `spin_briefly` and if `environment` contains none of the variables in WAITING.
    """
    settings = {}
    if THREADS not in environment and (cores := num_cores()) < cores_of_affinity():
        settings[THREADS] = str(cores)
    if spin_briefly and not any(name in environment for name in WAITING):
        settings[SPINS] = str(FEW_SPINS)
    return settings


def _others_need_cores() -> bool:
    """Return whether in the last minute other programs needed cores that our threads would take.

    Some systems do not state their load. Then assume that they did, because spinning costs more on a busy
    machine than sleeping does on an idle one.
    """
    load = load_average()
    return load is None or load + num_cores() > (os.cpu_count() or 1) + QUIET_LOAD


def waiting_in_words(environment: Mapping[str, str] = os.environ) -> str:
    """Return the variables that determine how threads wait, or the default in words if none is set."""
    decided = [f"{name}={environment[name]}" for name in WAITING if name in environment]
    return ", ".join(decided) or "spin (OpenMP's default)"

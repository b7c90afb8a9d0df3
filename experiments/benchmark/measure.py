"""The stop-watch of all benchmarks: alternating timing, peak memory, and a description of the machine.

Timings drift: clocks change and other processes start. Rivals therefore take turns within one run (A B C,
C B A, A B C, …) and are compared by the medians of their turns. Absolute times hold only for that machine
and that day.
"""

from __future__ import annotations

import ctypes
import gc
import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import deformable_detr
from deformable_detr.errors import UserError
from deformable_detr.files import write_json
from deformable_detr.system.machine import cpu_model, num_cores, version_of
from deformable_detr.system.memory import peak_bytes, reset_peak

# A short call is repeated until its turn takes this long, because the first call after a rival's turn finds
# its data evicted from the caches.
TURN_SECONDS = 0.05

# ---- Time ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timing:
    """The `seconds` that one call took in each turn, in the order of measurement."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """The interquartile range, in seconds; 0 for a single turn."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return high - low

    def to_dict(self) -> dict[str, Any]:
        return {
            "median_seconds": self.median,
            "spread_seconds": self.spread,
            "fastest_seconds": min(self.seconds),
            "turns": len(self.seconds),
        }


Name = TypeVar("Name", bound=Hashable)


def alternate(
    cases: Mapping[Name, Callable[[], object]],
    *,
    repeats: int,
    warmup: int = 1,
    turn_seconds: float = TURN_SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Name, Timing]:
    """Time all cases in turns. Every second round is reversed, so that no case always follows the same one.

    Args:
        cases: the call to time, by its name. Freeing its return value counts as part of the measured time.
        repeats: the number of rounds; each gives every case one turn.
        warmup: the number of calls of each case before the first round.
        turn_seconds: the length of a turn; the warm-up determines how many calls (at least one) fit into it.
        clock: a function that returns seconds; tests replace it.

    Returns:
        The seconds per call in each turn, by name, in the order of `cases`.
    """
    turns: dict[Name, list[float]] = {name: [] for name in cases}
    gc.collect()
    gc.freeze()  # existing objects need no further checks, which keeps the collections between turns short
    try:
        calls = {}
        for name, case in cases.items():
            seconds = min(_seconds(case, 1, clock) for _ in range(max(warmup, 1)))
            calls[name] = max(1, math.ceil(turn_seconds / seconds)) if seconds > 0 else 1
        for round_number in range(repeats):
            order = list(cases) if round_number % 2 == 0 else list(cases)[::-1]
            for name in order:
                turns[name].append(_seconds(cases[name], calls[name], clock))
    finally:
        gc.unfreeze()
    return {name: Timing(tuple(seconds)) for name, seconds in turns.items()}


def _seconds(case: Callable[[], object], calls: int, clock: Callable[[], float]) -> float:
    """Return the seconds per call. The garbage collector is off, because it would charge one rival for
    another's garbage."""
    gc.collect()
    gc.disable()
    try:
        start = clock()
        for _ in range(calls):
            case()
        return (clock() - start) / calls
    finally:
        gc.enable()


# ---- Memory --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """Resident memory of a process in bytes: before the call, and the maximum during it."""

    before: int
    peak: int

    @property
    def rise(self) -> int:
        return max(self.peak - self.before, 0)


def peak_memory(prepare: Callable[..., Callable[[], object]], *arguments: object) -> Memory:
    """Measure the resident memory of one call in a fresh process, which has no old buffers to reuse.

    Args:
        prepare: a module-level function (it is pickled by name), called in the new process with `arguments`.
            It builds the inputs and anything else that should not count, and returns the call to measure.
        arguments: the arguments of `prepare`, which must be picklable.

    Raises:
        Any exception of `prepare` or of the call; BrokenProcessPool if the process was killed.
    """
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as process:
        return process.submit(_memory_here, prepare, arguments).result()


def _memory_here(prepare: Callable[..., Callable[[], object]], arguments: Sequence[object]) -> Memory:
    call = prepare(*arguments)
    gc.collect()
    _trim_heap()
    before = reset_peak()
    call()
    return Memory(before, peak_bytes())


def _trim_heap() -> None:
    """Return freed memory to the system: glibc keeps blocks of up to 64 MB for later requests."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


# ---- Machine, peers, report ----------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """Return the facts that a measurement needs to be meaningful: processor, software, commit, date, load."""
    import torch

    from deformable_detr import __version__, ops

    return {
        "cpu": cpu_model(),
        "cores": num_cores(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "operator": ops.kernels()["cpu"],
        "load_average_at_start": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "deformable_detr": __version__,
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _commit() -> str | None:
    """Return the source tree's commit, with "+" if the package has changed since; None outside a checkout."""
    package = Path(deformable_detr.__file__).parent
    try:
        # If this fails, the repository is another project's
        _git(package, "ls-files", "--error-unmatch", "__init__.py")
        commit = _git(package, "rev-parse", "--short", "HEAD")
        changed = _git(package, "status", "--porcelain", "--untracked-files=no", "--", ".")
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    found = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, check=True)
    return found.stdout.strip()


def chosen_peers(against: str | None, known: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Select the rivals that take part.

    Args:
        against: names separated by commas; None for all of them.
        known: the distribution on PyPI of each peer, by its name.

    Returns:
        The versions of the installed peers by name, and the reasons for leaving out the others by name.

    Raises:
        UserError: if a name is unknown.
    """
    names = list(known) if against is None else [name.strip() for name in against.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise UserError(f"--against {name}: no such peer; choose from {', '.join(known)}.")
    installed, missing = {}, {}
    for name in names:
        version = version_of(known[name])
        if version is None:
            missing[name] = f"not installed (pip install {known[name]})"
        else:
            installed[name] = version
    return installed, missing


def write_report(path: str | Path, report: Mapping[str, Any]) -> None:
    """Write JSON, completely or not at all."""
    write_json(path, report)

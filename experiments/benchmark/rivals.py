"""Parts that `infer` and `train` share: their options, and a process for each rival, as its users run it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context

from deformable_detr.cli.options import Parser
from deformable_detr.errors import UserError
from deformable_detr.system.allocator import HUGE_PAGES
from deformable_detr.system.openmp import thread_settings


def add_shared_arguments(parser: Parser, size: str, peers: Iterable[str]) -> None:
    """Add the shared options; `size` is the default picture size, such as "480x640" (height x width)."""
    parser.option("--recipe", str, "deformable_detr_r50", "The recipe of the model.", shown="NAME")
    parser.option("--size", str, size, "Height and width of a picture.", shown="HxW")
    parser.option(
        "--against",
        str | None,
        None,
        f"Peers to compare with, of {', '.join(peers)}; '' for none. Default: all that are installed.",
        shown="NAME,…",
    )
    parser.option("--threads", int | None, None, "The number of threads. Default: as many as PyTorch takes.")
    parser.option("--repeats", int, 5, "How often each model is timed.")
    parser.option("--output", str | None, None, "Write what was measured as JSON here.", shown="FILE")


def parsed_size(text: str) -> tuple[int, int]:
    """Return (height, width) from a string such as "480x640".

    Raises:
        UserError: if `text` is not a size, or a side is below 32 pixels, too small to be halved five times.
    """
    height, cross, width = text.partition("x")
    if not (cross and height.isdecimal() and width.isdecimal() and min(int(height), int(width)) >= 32):
        raise UserError(f"--size {text}: must be HEIGHTxWIDTH, at least 32 pixels each, such as 480x640.")
    return int(height), int(width)


def environment_of_our_commands(*, busy: bool) -> dict[str, str]:
    """Return the variables that the package's commands set before they import PyTorch.

    On a busy machine, and in commands that run for long, they let threads spin only briefly (openmp.py).
    """
    return {HUGE_PAGES: "1", **thread_settings(os.environ, spin_briefly=busy)}


@contextmanager
def process_of_each(
    names: Iterable[str],
    set_up: Callable[[str], None],
    environment_of: Callable[[str], Mapping[str, str]] = lambda name: {},
) -> Iterator[dict[str, ProcessPoolExecutor]]:
    """Start a process for each name, with additions to its environment, and call `set_up(name)` in it.

    Yield the processes by name; they end with the block.
    """
    with ExitStack() as stack:
        processes = {}
        for name in names:
            process = ProcessPoolExecutor(1, get_context("spawn"), initializer=set_up, initargs=(name,))
            processes[name] = stack.enter_context(process)
            with _environment(environment_of(name)):
                process.submit(os.getpid).result()  # starts the process, which inherits the environment
        yield processes


@contextmanager
def _environment(additions: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(additions)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def busy_processes(count: int) -> Iterator[list[int]]:
    """Run `count` processes that keep the processor busy until the block ends; yield their ids."""
    with ExitStack() as stack:
        programs = []
        for _ in range(count):
            program = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(program.kill)
            programs.append(program.pid)
        yield programs

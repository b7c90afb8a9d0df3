"""What `infer` and `train` share: their options, and a process for each rival, as its users run it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context

from jsonargparse import ArgumentParser

from deformable_detr.errors import UserError


def add_shared_arguments(parser: ArgumentParser, size: str, peers: Iterable[str]) -> None:
    """`size`: the default, H x W."""
    parser.add_argument("--recipe", type=str, default="deformable_detr_r50")
    parser.add_argument("--size", type=str, default=size, help="height x width of a picture")
    parser.add_argument(
        "--against", type=str | None, default=None, help=f"{', '.join(peers)}, or '' for nobody"
    )
    parser.add_argument("--threads", type=int | None, default=None, help="default: as many as PyTorch takes")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each rival")
    parser.add_argument(
        "--output", type=str | None, default=None, help="write what was measured as JSON here"
    )


def parsed_size(text: str) -> tuple[int, int]:
    """(H, W) of "480x640".

    Raises:
        UserError: where it is none, or too small for five halvings.
    """
    height, cross, width = text.partition("x")
    if not (cross and height.isdecimal() and width.isdecimal() and min(int(height), int(width)) >= 32):
        raise UserError(f"--size {text}: must be HEIGHTxWIDTH, at least 32 pixels each, such as 480x640.")
    return int(height), int(width)


@contextmanager
def process_of_each(
    names: Iterable[str], set_up: Callable[[str], None]
) -> Iterator[dict[str, ProcessPoolExecutor]]:
    """A new process for each name, in which `set_up(name)` was called."""
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(
                ProcessPoolExecutor(1, get_context("spawn"), initializer=set_up, initargs=(name,))
            )
            for name in names
        }

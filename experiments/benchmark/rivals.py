"""Parts that `infer` and `train` share: their options, and a process for each rival, as its users run it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context

from deformable_detr.cli.options import Parser
from deformable_detr.errors import UserError


def add_shared_arguments(parser: Parser, size: str, peers: Iterable[str]) -> None:
    """Add the shared options; `size` is the default picture size, H x W."""
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
    """Return (H, W) from a text such as "480x640".

    Raises:
        UserError: if the text is not a size, or the size is too small to be halved five times.
    """
    height, cross, width = text.partition("x")
    if not (cross and height.isdecimal() and width.isdecimal() and min(int(height), int(width)) >= 32):
        raise UserError(f"--size {text}: must be HEIGHTxWIDTH, at least 32 pixels each, such as 480x640.")
    return int(height), int(width)


@contextmanager
def process_of_each(
    names: Iterable[str], set_up: Callable[[str], None]
) -> Iterator[dict[str, ProcessPoolExecutor]]:
    """Start a process for each name and call `set_up(name)` in it."""
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(
                ProcessPoolExecutor(1, get_context("spawn"), initializer=set_up, initargs=(name,))
            )
            for name in names
        }

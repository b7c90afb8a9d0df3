"""The command line: run a command and turn exceptions into a sentence and an exit code.

Exit codes: 0 for success; 2 for wrong input (one sentence on stderr); 130 for Ctrl-C; 1 for other failures.
With `--debug`, the traceback is printed before the sentence.

A command is a file in this folder with SUMMARY, `add_arguments(parser)` and `run(arguments)`, which returns
the exit code. Heavy libraries are imported in `run`, so that `--help` is fast.
"""

from __future__ import annotations

import errno
import sys
import traceback
from argparse import Namespace
from collections.abc import Callable, Sequence
from importlib import import_module
from io import TextIOWrapper
from typing import Protocol, cast

from ..system.allocator import keep_large_buffers
from ..system.openmp import prepare_threads
from ..words import one_line
from .messages import PROGRAM, fail, refuse
from .options import Parser

COMMANDS = (
    "train",
    "evaluate",
    "predict",
    "explain",
    "report",
    "inspect",
    "convert",
    "export",
    "demo",
    "serve",
    "doctor",
)

LASTING = ("train", "demo", "serve")  # they run for so long that other programs may start meanwhile

_NO_MEMORY = ("not enough memory", "can't allocate memory", "out of memory")  # in torch's messages

# The operating system's errors if a file cannot be written. (Code that reads a user's file first checks that
# it exists.)
_WRONG_PATH = frozenset(
    (
        errno.EPERM,
        errno.EACCES,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.EEXIST,
        errno.ENOENT,
        errno.ENAMETOOLONG,
        errno.ELOOP,
    )
)


class Command(Protocol):
    """The interface of a command's module."""

    SUMMARY: str

    def add_arguments(self, parser: Parser) -> None: ...

    def run(self, arguments: Namespace) -> int: ...


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code.

    Args:
        arguments: the name of the command and its arguments; None means those in `sys.argv`.

    Raises:
        BrokenPipeError: if the program that reads the output has ended.
        SystemExit: after `--help` of a command, with the exit code 0.
    """
    typed = list(sys.argv[1:] if arguments is None else arguments)
    if not typed or typed[0] in ("-h", "--help", "help"):
        print(_overview(), file=sys.stdout if typed else sys.stderr)
        return 0 if typed else 2
    if typed[0] == "--version":
        from .. import __version__

        print(f"{PROGRAM} {__version__}")
        return 0
    name, *rest = typed
    if name not in COMMANDS:
        return refuse(f"there is no command {name}: choose one of {', '.join(COMMANDS)}.")
    keep_large_buffers()
    prepare_threads(lasting=name in LASTING)
    return execute(lambda words: parser_of(name, words), command(name).run, rest)


def command(name: str) -> Command:
    """Import and return the module of a command."""
    return cast(Command, import_module(f"{__package__}.{name}"))


def parser_of(name: str, typed: Sequence[str] = ()) -> Parser:
    """Return a command's parser.

    For commands with --recipe, the help shows the defaults of the recipe that the arguments `typed` name.

    Raises:
        UserError: if there is no recipe of the typed name.
    """
    parser = Parser(f"{PROGRAM} {name}", typed)
    command(name).add_arguments(parser)
    return parser


def execute(
    make_parser: Callable[[Sequence[str]], Parser], run: Callable[[Namespace], int], typed: Sequence[str]
) -> int:
    """Parse the arguments, run the command and return the exit code.

    The exceptions in errors.py define their own exit codes.

    Args:
        make_parser: returns the command's parser for these arguments.
        run: runs the command with the parsed arguments.
        typed: the command's arguments, perhaps with `--debug`.

    Raises:
        BrokenPipeError: if the program that reads the output has ended.
        SystemExit: after `--help`, with the exit code 0.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # file names and the terminal need not be UTF-8
            stream.reconfigure(errors="backslashreplace")
    debug = "--debug" in typed
    words = [word for word in typed if word != "--debug"]
    try:
        return run(make_parser(words).read(words))
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        return fail("stopped.", 130)
    except Exception as error:
        if debug:
            traceback.print_exception(error)
        code = getattr(error, "exit_code", None)
        if code is not None:
            return fail(str(error), code)
        if isinstance(error, MemoryError) or any(phrase in str(error).lower() for phrase in _NO_MEMORY):
            return refuse(
                "there is not enough memory for this input: use a larger machine, or smaller pictures, "
                f"batches or files{_detail(error)}; --debug shows where."
            )
        if isinstance(error, OSError) and error.errno in _WRONG_PATH and error.filename is not None:
            return refuse(f"{error.filename}: {error.strerror}; name another path.")
        return fail(f"{type(error).__name__}: {error} (--debug shows where)", 1)


def _detail(error: Exception) -> str:
    """Return the first 200 characters of an error's message in brackets, or "" if it has no message.

    A MemoryError often has none.
    """
    detail = one_line(error)
    return f" ({detail:.200})" if detail else ""


def _overview() -> str:
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            f"usage: {PROGRAM} COMMAND …          (COMMAND --help lists its options)",
            "",
            *(f"  {name:<{width}}  {command(name).SUMMARY}" for name in COMMANDS),
            "",
            "MODEL: a run or checkpoint folder, an authors' .pth file, a transformers folder",
            "or hub id, or demo, the bundled model; to evaluate, predict and serve also an",
            "exported .onnx or .xml.",
            "DATA: a folder in COCO, Pascal VOC or YOLO layout, which is recognised by its",
            "files.",
            "--debug (any command) shows the traceback of an error.",
        ]
    )

"""Error messages of the command line: one sentence on stderr, with an exit code."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable

from ..words import printable

PROGRAM = "deformable-detr"


def fail(sentence: str, code: int) -> int:
    """Print a sentence as one line on stderr and return `code`.

    Control characters in the sentence, such as those in quoted names, are escaped.
    """
    print(f"{PROGRAM}: {printable(' '.join(sentence.split()))}", file=sys.stderr)
    return code


def refuse(sentence: str) -> int:
    """Report wrong input and return exit code 2."""
    return fail(sentence, 2)


def suggestion(unknown: str, options: Iterable[str]) -> str:
    """Return "; did you mean OPTION?" with the option that `unknown` probably stands for, otherwise "".

    It is the first option that ends with the same name (--train.epochs for --epochs), or else the most
    similar one.
    """
    known = list(options)
    fields = [option for option in known if option.endswith(f".{unknown.removeprefix('--')}")]
    near = fields or difflib.get_close_matches(unknown, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""

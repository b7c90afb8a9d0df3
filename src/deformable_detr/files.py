"""Files: written whole or not at all (beside first, then renamed into place), and what broken ones raise."""

from __future__ import annotations

import os
import struct
from pathlib import Path

# What `torch.load` raises, besides UnpicklingError, for a file that is cut or changed: it depends on where.
DAMAGED_FILE_ERRORS = (
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    struct.error,
)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text. A reader sees the old file or the new one, never a half.

    Raises:
        OSError: as opening and renaming raise it; what was there before is untouched.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f"{target.name}.partial")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)

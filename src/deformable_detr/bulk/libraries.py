"""Import the libraries of the extra [scale]: pyarrow and Ray."""

from __future__ import annotations

from typing import Any

from ..extras import import_extra


def library(name: str) -> Any:
    """Import a library; its type is Any, because not all of these libraries have type hints.

    Raises:
        UserError: if it is not installed.
    """
    return import_extra(name, "scale", "predict --format parquet")

"""Import the libraries of the extra [scale]: pyarrow and Ray."""

from __future__ import annotations

from typing import Any

from ..extras import import_extra


def library(name: str) -> Any:
    """Import the library or submodule `name`; the result is Any, because not all libraries have type hints.

    Raises:
        UserError: if the library is not installed.
    """
    return import_extra(name, "scale", "predict --format parquet")

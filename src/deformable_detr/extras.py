"""Import the optional libraries (extras of pyproject.toml) that only some commands use."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from .errors import UserError


def import_extra(module: str, extra: str, use: str) -> ModuleType:
    """Import a library that belongs to an extra.

    Args:
        module: the module's name, with dots for a submodule.
        extra: the extra's name in pyproject.toml.
        use: the subject of the error message, such as "serve".

    Raises:
        UserError: if the library or one of its own dependencies is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{use} needs {error.name or module}, which is not installed: "
            f'pip install "deformable-detr[{extra}]".'
        ) from error

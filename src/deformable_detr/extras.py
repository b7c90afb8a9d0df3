"""Libraries that only some commands use: the extras of pyproject.toml, imported where they are used."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from .errors import UserError


def import_extra(module: str, extra: str, use: str) -> ModuleType:
    """Import a library that an extra brings.

    Args:
        module: as `import` takes it, with dots for a submodule.
        extra: its name in pyproject.toml.
        use: what needs the library, the beginning of the sentence: "serve".

    Raises:
        UserError: the library, or one that it needs itself, is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{use} needs {error.name or module}, which is not installed: "
            f'pip install "deformable-detr[{extra}]".'
        ) from error

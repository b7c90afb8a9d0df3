"""Names of model parts that are defined outside the package.

A field of the configuration may hold them in addition to the choices of its annotation. The code that builds
such a part adds its name (docs/code_tour.md shows three examples).
"""

from __future__ import annotations

_added: dict[str, set[str]] = {}


def add_choice(path: str, name: str) -> None:
    """Allow `name` as a value of the field at `path`, such as `model.queries`, in this process."""
    _added.setdefault(path, set()).add(name)


def is_added_choice(path: str, value: object) -> bool:
    """Return whether `add_choice` was called with this name for this field."""
    return isinstance(value, str) and value in _added.get(path, ())

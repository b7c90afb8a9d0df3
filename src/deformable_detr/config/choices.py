"""Names of model parts that are defined outside the package.

A field of the configuration may hold them in addition to the choices of its annotation. The code that builds
such a part adds its name (docs/code_tour.md shows three examples).
"""

from __future__ import annotations

_added: dict[str, set[str]] = {}


def add_choice(path: str, name: str) -> None:
    """Allow the value `name` for the field `path`, for example "model.queries", until this process ends."""
    _added.setdefault(path, set()).add(name)


def is_added_choice(path: str, value: object) -> bool:
    """Return whether `add_choice` has allowed `value` for the field `path` in this process."""
    return isinstance(value, str) and value in _added.get(path, ())

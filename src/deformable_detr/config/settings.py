"""The declaration of a field of the configuration: its default, its range and its help text, in one place.

`--help`, docs/configuration.md and all checks use this declaration.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import reduce
from typing import Any, get_type_hints

_KEY = "setting"  # the key in a field's metadata


@dataclass(frozen=True)
class Range:
    """The range of numbers that a field may hold.

    `minimum` and `maximum` are inside the range, `above` and `below` are not. None means no bound.
    """

    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (self.minimum is None or value >= self.minimum)
            and (self.above is None or value > self.above)
            and (self.maximum is None or value <= self.maximum)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        if self.minimum is not None and self.maximum is not None:
            return f"from {self.minimum:g} to {self.maximum:g}"
        words = {"at least": self.minimum, "above": self.above, "at most": self.maximum, "below": self.below}
        return " and ".join(f"{word} {bound:g}" for word, bound in words.items() if bound is not None)


@dataclass(frozen=True)
class Declaration:
    """The help text and range of a field. `filled` is True for a field whose list must not be empty."""

    help: str
    range: Range
    filled: bool


@dataclass(frozen=True)
class Setting:
    """One field of a configuration, with its help text and range.

    Attributes:
        path: the names of the field's groups and of the field, joined by dots: `model.backbone.name`.
        hint: the field's annotation.
    """

    path: str
    hint: Any
    help: str
    range: Range

    @property
    def group(self) -> str:
        return self.path.rpartition(".")[0]

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    def of(self, config: Any) -> Any:
        """Return this field's value in the complete configuration `config`."""
        return reduce(getattr, self.path.split("."), config)


def setting(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    below: float | None = None,
    filled: bool = False,
) -> Any:
    """Declare a field of a frozen dataclass.

    Args:
        default: the field's value without a recipe.
        help: a description in one or two sentences; words that a user may type are in `backticks`.
        minimum, above, maximum, below: bounds of a number, or of every number of a list, as in `Range`.
        filled: True if a list must not be empty.
    """
    declaration = Declaration(help, Range(minimum, above, maximum, below), filled)
    return dataclasses.field(default=default, metadata={_KEY: declaration})


def declarations(cls: type) -> dict[str, Declaration]:
    """Return the declaration of each field that `setting` declared. Groups of fields have none."""
    return {item.name: item.metadata[_KEY] for item in dataclasses.fields(cls) if _KEY in item.metadata}


def hints(cls: type) -> dict[str, Any]:
    """Return the annotation of each field of a dataclass by its name, as a type and not as a string."""
    return get_type_hints(cls)


def settings_of(cls: type, prefix: str = "") -> list[Setting]:
    """Return every field of a dataclass and of its groups of fields, in the order of declaration.

    `prefix` is put before each path; it is empty or ends with a dot.
    """
    declared, found = declarations(cls), []
    for name, hint in hints(cls).items():
        if dataclasses.is_dataclass(hint):
            found += settings_of(hint, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            found.append(Setting(f"{prefix}{name}", hint, declared[name].help, declared[name].range))
    return found

"""Checks of a field's value, for YAML files, Python overrides and flags alike.

A hint is a field's annotation: `int`, `float | None`, `Literal["a", "b"]`, `tuple[int, ...]`.
"""

from __future__ import annotations

import sys
import types
from typing import Any, Literal, Union, get_args, get_origin

from ..errors import UserError
from ..yaml_documents import parse_yaml
from .choices import is_added_choice
from .settings import declarations, hints


def require(condition: bool, sentence: str) -> None:
    """Raise UserError with `sentence` unless `condition` holds."""
    if not condition:
        raise UserError(sentence)


def check(config: Any, where: str) -> None:
    """Check each field against its annotation (type) and its declaration (range).

    Dataclasses do not check types, and YAML may contain any type. A name that `add_choice` has allowed for a
    field is valid, too.

    Args:
        config: a dataclass whose fields were declared by `setting`.
        where: the prefix of its fields' names, for example `model.backbone.`.

    Raises:
        UserError: if a value is invalid; the message names the field.
    """
    kinds = hints(type(config))
    for name, hint in kinds.items():
        value = getattr(config, name)
        is_known = fits(value, hint) or is_added_choice(f"{where}{name}", value)
        require(is_known, f"{where}{name} must be {in_words(hint)}, not {quoted(value)}.")
    for name, declared in declarations(type(config)).items():
        value, path = getattr(config, name), f"{where}{name}"
        if isinstance(value, tuple):
            require(bool(value) or not declared.filled, f"{path} must not be an empty list.")
            require(
                all(item in declared.range for item in value),
                f"{path} must hold only numbers that are {declared.range}, not {quoted(value)}.",
            )
        elif isinstance(value, int | float):
            bounds = f"{declared.range}, or null" if fits(None, kinds[name]) else f"{declared.range}"
            require(value in declared.range, f"{path} must be {bounds}, not {quoted(value)}.")


def fits(value: Any, hint: Any) -> bool:
    """Return True if a value has the type of the hint.

    An int also fits `float`, a float must be finite, and a bool is not a number. A tuple fits only if all its
    items and, for a hint of a fixed length, their number do.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin in (Union, types.UnionType):
        return any(fits(value, argument) for argument in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if arguments[-1] is Ellipsis:
            return all(fits(item, arguments[0]) for item in value)
        return len(value) == len(arguments) and all(map(fits, value, arguments))
    if hint is float:
        limit = sys.float_info.max  # which excludes infinity, and integers that no float can hold
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= limit
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def in_words(hint: Any) -> str:
    """Describe a type for messages: "a whole number or null", "one of step, cosine"."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(arguments)}"
    if origin in (Union, types.UnionType):
        return " or ".join(map(in_words, arguments))
    if origin is tuple:
        kind = {int: "whole numbers", float: "numbers"}[arguments[0]]
        return f"a list of {kind}" if arguments[-1] is Ellipsis else f"a list of {len(arguments)} {kind}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}
    return words.get(hint) or ("null" if hint is types.NoneType else "a group of fields")


def placeholder(hint: Any) -> str:
    """Describe a type in one word for `--help`, which shows it after a flag."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "{" + ",".join(arguments) + "}"
    if origin in (Union, types.UnionType):
        return next(placeholder(argument) for argument in arguments if argument is not types.NoneType)
    if origin is tuple:
        return f"[{placeholder(arguments[0])},…]"
    return {int: "N", float: "X", bool: "{true,false}", str: "TEXT"}[hint]


def written(value: Any) -> str:
    """Format a value in the form that YAML files and flags use; a whole float has no decimal point."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(written, value)) + "]"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value)


def quoted(value: Any) -> str:
    """Format a value for messages.

    Messages distinguish the string 'true' from the value true, and 3.0, which is not a whole number, from 3.
    """
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(quoted, value)) + "]"
    return repr(value) if isinstance(value, str | float) else written(value)


def from_text(text: str, hint: Any) -> Any:
    """Return the value that a user typed after a flag.

    The text is read as YAML unless the field holds a string or one of several names; `null` means None if the
    hint allows it, and a whole number becomes a float if the hint is `float`. No error is raised: a value
    that does not fit the hint is returned, too, so that `check` refuses it with a message that shows it.
    """
    kinds = _kinds(hint)
    if text == "null" and types.NoneType in kinds:
        return None
    if any(kind is str or get_origin(kind) is Literal for kind in kinds):
        return text
    try:
        value = parse_yaml(text)
    except ValueError:
        return text
    value = as_hinted(value, hint)
    items = get_args(hint)[:1] if get_origin(hint) is tuple else kinds
    if float not in items or not fits(value, hint) or value is None:
        return value
    return tuple(map(float, value)) if isinstance(value, tuple) else float(value)  # YAML reads 1 as an int


def as_hinted(value: Any, hint: Any) -> Any:
    """Convert a value to its annotated type if YAML or JSON represents it differently.

    Lists become tuples, and 1e-4, which is a string in YAML 1.1, becomes a number. Any other value is
    returned unchanged, even if it does not have that type.
    """
    if isinstance(value, list):
        kind = (get_args(hint) or (None,))[0]
        return tuple(as_hinted(item, kind) for item in value)
    if isinstance(value, str) and float in _kinds(hint):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _kinds(hint: Any) -> tuple[Any, ...]:
    """Return the alternatives of a hint that is a union, or the hint itself as the only one."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)

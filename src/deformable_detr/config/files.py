"""Conversion of configurations to and from dictionaries and YAML files, and overrides of their fields."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from ..errors import UserError
from ..words import one_line
from ..yaml_documents import parse_yaml
from .checks import as_hinted
from .fields import RunConfig
from .settings import hints, settings_of

ConfigT = TypeVar("ConfigT")


def to_dict(config: Any) -> dict[str, Any]:
    """Convert a configuration to plain dictionaries and lists, ready for JSON or YAML."""
    result: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return result


def from_dict(cls: type[ConfigT], values: Mapping[str, Any], where: str = "") -> ConfigT:
    """Create a configuration from the result of `to_dict`. Missing fields get their defaults.

    Args:
        cls: the dataclass to create, such as `RunConfig`.
        values: the values of the dataclass's fields by name; a group of fields is a mapping.
        where: the prefix of the fields' names in messages, for example `model.backbone.`.

    Raises:
        UserError: if a field is unknown or its value is invalid; the message names the field.
    """
    known = hints(cls)
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        path = f"{where}{name}"
        if name not in known:
            raise UserError(f"unknown field {path}: known are {', '.join(sorted(known))}.")
        hint = known[name]
        if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
            arguments[name] = from_dict(hint, value, f"{path}.")  # type: ignore[arg-type]
        else:
            arguments[name] = as_hinted(value, hint)
    return cls(**arguments)


def override(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """Return a copy of `config` with some fields changed: `{"train.epochs": 12, "num_queries": 100}`.

    A name without a dot is looked up in model, data, train and their groups of fields, and must be unique.
    The value of a group of fields is a mapping, which may name only some of them. The result is checked after
    all changes, so their order does not matter.

    Raises:
        UserError: if a field is unknown, its name is not unique, or its value is invalid; the message names
            the field.
    """
    values = to_dict(config)
    for name, value in changes.items():
        _set(values, _full_path(name).split("."), value, name)
    return from_dict(RunConfig, values)


def _set(values: dict[str, Any], path: list[str], value: Any, name: str) -> None:
    head, *rest = path
    if head not in values:
        raise UserError(f"unknown field {name}: there is no {head} among {', '.join(sorted(values))}.")
    if rest:
        if not isinstance(values[head], dict):
            raise UserError(f"unknown field {name}: {head} has no fields.")
        _set(values[head], rest, value, name)
    elif isinstance(values[head], dict) and isinstance(value, Mapping):
        for key, item in value.items():
            _set(values[head], [str(key)], item, f"{name}.{key}")
    else:
        values[head] = value


def _full_path(name: str) -> str:
    if "." in name or name in {item.name for item in dataclasses.fields(RunConfig)}:
        return name
    settings = settings_of(RunConfig)
    paths = list(dict.fromkeys(path for item in settings for path in (item.group, item.path) if path))
    matches = [path for path in paths if path.split(".")[-1] == name]
    if len(matches) > 1:
        raise UserError(f"the field name {name} is not unique: write one of {', '.join(matches)}.")
    if not matches:
        near = difflib.get_close_matches(name, [path.split(".")[-1] for path in paths], n=1)
        meant = f"did you mean {near[0]}?" if near else "docs/configuration.md has the list."
        raise UserError(f"unknown field {name}: {meant}")
    return matches[0]


def read_config(path: Path, base: RunConfig) -> RunConfig:
    """Return `base` with the fields that a YAML file sets.

    Raises:
        UserError: if the file cannot be read or a field is wrong; the message names the file and the field.
    """
    return with_file(base, path, read_yaml(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the fields that a YAML file sets, as nested dictionaries. Their values are not checked.

    Raises:
        UserError: if the file cannot be read, is not YAML or is not a mapping of fields; the message names
            it.
    """
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"there is no file {path}: name a YAML file with fields of a configuration."
        ) from error
    except (OSError, ValueError) as error:
        why = one_line(error)
        raise UserError(f"{path} cannot be read as a YAML configuration: {why}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no configuration: it must state recipe, model, data or train.")
    return {str(name): value for name, value in content.items()}  # YAML reads `on` and `1` as other types


def with_file(base: RunConfig, path: Path, content: dict[str, Any]) -> RunConfig:
    """Return `base` with the fields in `content`, which was read from `path`.

    Raises:
        UserError: if a field is unknown or its value is invalid; the message names the file and the field.
    """
    try:
        return override(base, content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error

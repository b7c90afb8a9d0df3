"""Read YAML documents of unknown origin: no code, no repeated keys, no explosion of aliases."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import yaml

_MOST_YAML_VALUES = 2_000_000  # with aliases written out; a list of names of 2 MB has fewer


class _UniqueKeys:
    """A base class of YAML loaders that refuses a mapping with the same key twice.

    Otherwise, YAML would use the last value of the key without a warning.
    """

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = Counter(key.value for key, _ in node.value if isinstance(key.value, str))
        twice = next((key for key, times in keys.items() if times > 1), None)
        if twice is not None:
            raise ValueError(f"the key {twice:.80} is stated twice")
        content: dict[Any, Any] = super().construct_mapping(node, deep)  # type: ignore[misc]
        return content


# The C loaders refuse deep nesting, which would exhaust the stack.
class _TypedLoader(_UniqueKeys, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    pass


class _TextLoader(_UniqueKeys, getattr(yaml, "CBaseLoader", yaml.BaseLoader)):  # type: ignore[misc]
    pass


def parse_yaml(text: str | bytes, *, typed: bool = True) -> Any:
    """Return the content of a YAML document, whose tags cannot run code.

    Args:
        text: the document; bytes are UTF-8 or UTF-16.
        typed: False to read only dicts, lists and strings, so that the class "no" is not False.

    Raises:
        ValueError: if the document is not YAML, is nested too deeply or too large with its aliases written
            out, or states a key twice.
    """
    try:
        content = yaml.load(text, Loader=_TypedLoader if typed else _TextLoader)
        if _number_of_values(content, {}) > _MOST_YAML_VALUES:
            raise ValueError("its aliases (*name) stand for too many values")
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from error
    return content


def _number_of_values(content: Any, known: dict[int, float]) -> float:
    """Return the number of values with aliases written out; infinity if a value contains itself.

    `known` holds the numbers for the dicts and lists that were counted before, by their ids.
    """
    if not isinstance(content, dict | list):
        return 1
    if id(content) not in known:
        known[id(content)] = math.inf
        items = content.values() if isinstance(content, dict) else content
        known[id(content)] = 1 + sum(_number_of_values(item, known) for item in items)
    return known[id(content)]

"""The Jinja2 environment of all pages."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

from .. import words
from .tables import Cell


def render(name: str, **content: Any) -> str:
    """Return the template `name`, a file of the folder templates/, filled with `content`.

    Raises:
        FileNotFoundError: if there is no such file.
        jinja2.UndefinedError: if a value that the template uses is missing.
    """
    return _environment().get_template(name).render(**content)


def template_text(name: str) -> str:
    """Return a file of the folder templates/ unchanged: a template, a style sheet, or a script."""
    return (files(__package__) / "templates" / name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        loader=FunctionLoader(template_text),
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.globals["source"] = lambda name: Markup(template_text(name))
    environment.filters |= {
        "cell": Cell.from_text,
        "code": _with_code,
        "count": words.count,
        "percent": words.percent,
        "thousands": "{:,}".format,
    }
    return environment


def _finalize(value: Any) -> Any:
    """Escape control characters in a string, which may come from a file.

    Markup, which the package itself creates, and values of other types are returned unchanged.
    """
    return words.printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _with_code(sentence: str) -> Markup:
    """Return a sentence as HTML, with words in backticks and options with numbers (--epochs 50) as code."""
    text = str(escape(words.printable(sentence)))
    text = re.sub(r"`([^`<>]+)`", r"<code>\1</code>", text)
    return Markup(re.sub(r"(--[\w.-]+ (?:\d+|\[[\d,]+\]))", r'<code class="option">\1</code>', text))

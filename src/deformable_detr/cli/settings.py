"""A flag for every field of a run's configuration, generated from the field's declaration.

Values are checked when the configuration is created, so that a flag, a line of YAML and a keyword in Python
fail with the same sentence.
"""

from __future__ import annotations

from argparse import SUPPRESS
from collections.abc import Collection
from functools import partial
from typing import Any

from ..config import RECIPES, RunConfig, recipe, settings_of
from ..config.checks import from_text, written
from .options import Parser

COMMON = "common options"


def add_recipe(parser: Parser, usual: str, in_words: str | None = None) -> RunConfig:
    """Add --recipe and --config, and return the chosen recipe, whose values `--help` shows as defaults.

    Args:
        usual: the recipe that is returned if none is typed.
        in_words: what `--help` states as the default instead of `usual`, if it depends on the machine.

    Raises:
        UserError: if there is no recipe of the typed name, or --recipe has no value.
    """
    recipe_only = Parser(parser.prog, add_help=False)
    for target in (recipe_only, parser):
        target.option(
            "--recipe",
            str | None,
            None,
            f"One of the recipes above. Default: {in_words or usual}.",
            shown="NAME",
            group=COMMON,
        )
    typed = recipe_only.read_known(parser.typed)[0].recipe
    parser.option(
        "--config",
        str | None,
        None,
        "A YAML file of settings, which override the recipe; flags override both.",
        shown="FILE",
        group=COMMON,
    )
    return recipe(typed or usual)


def add_settings(parser: Parser, shown: RunConfig, common: Collection[str] = ()) -> None:
    """Add a flag for each field of a run's configuration except the recipe's name.

    Flags that are not typed are absent from the parsed arguments.

    Args:
        shown: the configuration whose values `--help` shows as defaults.
        common: paths of the fields that `--help` lists under the common options.
    """
    for setting in settings_of(RunConfig):
        if setting.group:  # the only field without a group is the recipe's name
            parser.option(
                f"--{setting.path}",
                setting.hint,
                SUPPRESS,
                setting.help,
                read=partial(from_text, hint=setting.hint),
                group=COMMON if setting.path in common else GROUPS[setting.group],
                default_shown=written(setting.of(shown)),
            )


# The titles of the groups of fields in --help.
GROUPS = {
    "model": "model",
    "model.backbone": "model",
    "data": "data",
    "train": "train",
    "train.loss": "loss",
    "train.routes": "routes, which are used only in training",
}


def changes(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the parsed arguments that set fields of the configuration, as `config.override` accepts them.

    The keys are the paths of the fields. Only arguments whose names contain a dot set fields.
    """
    return {path: value for path, value in arguments.items() if "." in path}


def recipe_names() -> str:
    return ", ".join(RECIPES)
